"""Rollouts and credit -> every optimizer step of one rollout batch, and what happened in them.

Critic and policy are trained one after the other, so their graphs are never alive together, and
under a shared base the adapter is switched once per pass.

Axes: B completions of the rollout batch, b rows of a micro-batch, T completion tokens.
"""

import numpy as np
import torch
from torch import Tensor

from spo.config import SPOConfig
from spo.learner import Learner, LossOf, Step, minibatches, sequences_of, totals
from spo.losses import policy_loss, positive_nll, token_weights
from spo.mismatch import corrected_advantages
from spo.networks.batching import MicroBatch
from spo.rollouts import Credit, Rollouts
from spo.values.critic import Critic


def update(
    rollouts: Rollouts, credit: Credit, policy: Learner, critic: Critic, args: SPOConfig
) -> dict[str, float]:
    """Fit the critic to the returns and the policy to the advantages -> metrics: means over the
    steps, gradient norms and learning rates of the last one."""
    metrics = critic.fit(rollouts, credit)
    warming_up = bool(critic.sources) and rollouts.step <= args.value_warmup_steps
    return metrics | update_policy(rollouts, credit, policy, args, skip=warming_up)


def update_policy(
    rollouts: Rollouts, credit: Credit, policy: Learner, args: SPOConfig, skip: bool = False
) -> dict[str, float]:
    """The policy's steps; with `skip` only its schedule goes on."""
    accelerator = policy.accelerator
    share_prompts = args.share_prompts and policy.network.can_share_prompts
    sequences = sequences_of(rollouts, share_prompts)
    mask = rollouts.loss_mask(args.mask_truncated_completions)
    token_advantages = corrected_advantages(credit.token_advantages, rollouts, args)
    steps: list[Step] = []
    for rows in minibatches(len(rollouts), rollouts.step, args, accelerator.num_processes):
        if skip:
            steps.append(policy.skip())
            continue
        weights = np.zeros(mask.shape, np.float32)
        num_rows = int(rollouts.scored[rows].sum())  # truncated ones count, as in TRL
        weights[rows] = token_weights(
            mask[rows], args.loss_type, args.max_completion_length, num_rows
        )
        loss_of = _loss_of(rollouts, credit, token_advantages, weights, args)
        steps.append(policy.step(sequences, rows[mask[rows].any(1)], loss_of))
    metrics = {"learning_rate": steps[-1].learning_rate}
    if skip:
        return metrics
    names = ("policy_loss", "clipped", "approx_kl", "policy_tokens")
    loss, clipped, approx_kl, tokens = totals(steps, names, accelerator)
    return metrics | {
        "grad_norm": steps[-1].grad_norm,
        "spo/policy_loss": loss / len(steps),
        "spo/clip_fraction": clipped / max(tokens, 1),
        "spo/approx_kl": approx_kl / max(tokens, 1),
    }


def _loss_of(
    rollouts: Rollouts,
    credit: Credit,
    token_advantages: np.ndarray,
    weights: np.ndarray,
    args: SPOConfig,
) -> LossOf:
    """The policy's loss of a micro-batch of these rollouts."""

    def loss_of(token_logprobs: Tensor, batch: MicroBatch):
        def part(array):
            return torch.from_numpy(array[batch.rows, : batch.width]).to(token_logprobs.device)

        reference = rollouts.token_logprobs_ref
        mb_weights = part(weights)
        loss, sums = policy_loss(
            token_logprobs,
            part(rollouts.token_logprobs_old),
            part(token_advantages),
            mb_weights,
            part(credit.segment_ids),
            epsilon=args.epsilon,
            epsilon_high=args.epsilon_high,
            delta=args.delta,
            importance_sampling_level=args.importance_sampling_level,
            token_logprobs_ref=None if reference is None else part(reference),
            beta=0.0 if args.kl_in_reward else args.beta,
            use_bias_correction_kl=args.use_bias_correction_kl,
            loss_type=args.loss_type,
            sapo_temperatures=(args.sapo_temperature_pos, args.sapo_temperature_neg),
        )
        if args.positive_nll_coef:
            rewards = torch.from_numpy(rollouts.completion_rewards[batch.rows]).to(loss.device)
            nll = positive_nll(token_logprobs, rewards, mb_weights)
            loss = loss + args.positive_nll_coef * nll
            sums |= {"policy_loss": loss.detach()}
        return loss, sums

    return loss_of
