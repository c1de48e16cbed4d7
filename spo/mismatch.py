"""Another engine's log-probs beside the trainer's own -> how much each token's loss counts.

An engine that is not the policy itself samples from slightly other probabilities: other kernels,
16-bit numbers, quantised weights. Importance sampling corrects the policy loss for it, as TRL does.

Axes: B completions of the rollout batch, T completion tokens. Pure numpy.
"""

import numpy as np
from jaxtyping import Bool, Float

from spo.config import SPOConfig
from spo.errors import EngineError
from spo.rollouts import Rollouts

FAR_APART = 1.0
"""Nats a token: 16-bit arithmetic is a hundred times closer, another model a few times farther."""


def importance_ratios(
    token_logprobs_old: Float[np.ndarray, "B T"],
    token_logprobs_sampler: Float[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    mode: str,
    clip_min: float | None = None,
    clip_max: float | None = None,
) -> Float[np.ndarray, "B T"]:
    """π_old / π_sampler of each token, or of its whole sequence, kept within [clip_min, clip_max].

    `mode` is token_truncate, token_mask, sequence_truncate or sequence_mask: 'truncate' moves a
    ratio that is outside to the bound, 'mask' makes it 0, so that its tokens teach nothing. The
    ratio of a sequence is the product of its tokens'. Tokens outside `mask`, and those the engine
    had no number for (NaN), count as 1.

    >>> old, sampler = np.log([[0.5, 0.8]]), np.log([[0.1, 0.8]])
    >>> importance_ratios(old, sampler, old < 0, "token_truncate", clip_max=3.0).round(3)
    array([[3., 1.]])
    >>> importance_ratios(old, sampler, old < 0, "sequence_mask", clip_max=3.0)
    array([[0., 0.]])
    """
    log_ratios = np.where(mask, token_logprobs_old - token_logprobs_sampler, 0.0)
    log_ratios = np.nan_to_num(log_ratios, nan=0.0)
    if mode.startswith("sequence"):
        log_ratios = np.broadcast_to(log_ratios.sum(1, keepdims=True), log_ratios.shape)
    with np.errstate(over="ignore"):  # e^1000 is beyond any bound, and bounded next
        ratios = np.exp(log_ratios)
    low = -np.inf if clip_min is None else clip_min
    high = np.inf if clip_max is None else clip_max
    if mode.endswith("truncate"):
        return ratios.clip(low, high)
    return np.where((ratios < low) | (ratios > high), 0.0, ratios)


def corrections(rollouts: Rollouts, args: SPOConfig) -> Float[np.ndarray, "B T"] | None:
    """What the policy loss of each token is multiplied with; None where nothing is corrected."""
    if rollouts.token_logprobs_sampler is None or not args.vllm_importance_sampling_correction:
        return None
    return importance_ratios(
        rollouts.token_logprobs_old,
        rollouts.token_logprobs_sampler,
        rollouts.loss_mask(args.mask_truncated_completions),
        args.vllm_importance_sampling_mode,
        args.vllm_importance_sampling_clip_min,
        args.vllm_importance_sampling_clip_max,
    ).astype(np.float32)


def corrected_advantages(
    token_advantages: Float[np.ndarray, "B T"], rollouts: Rollouts, args: SPOConfig
) -> Float[np.ndarray, "B T"]:
    """The advantages as the policy loss sees them.

    That loss is −min(ρ A, clip(ρ) A): a factor of at least 0 before the advantage is one before
    the loss, and the KL penalty beside it stays as it is.
    """
    factors = corrections(rollouts, args)
    return token_advantages if factors is None else token_advantages * factors


def mismatch_metrics(rollouts: Rollouts, args: SPOConfig) -> dict[str, float]:
    """How far engine and trainer are apart, under TRL's names; nothing without such an engine."""
    if rollouts.token_logprobs_sampler is None:
        return {}
    apart = _apart(rollouts)
    metrics = {
        "sampling/sampling_logp_difference/mean": float(apart.mean()) if apart.size else 0.0,
        "sampling/sampling_logp_difference/max": float(apart.max(initial=0.0)),
    }
    factors = corrections(rollouts, args)
    if factors is None:
        return metrics
    mask = rollouts.loss_mask(args.mask_truncated_completions)
    if args.vllm_importance_sampling_mode.startswith("sequence"):
        ratios = factors[mask.any(1), 0]
    else:
        ratios = factors[mask]
    name = "sampling/importance_sampling_ratio"
    return metrics | {
        f"{name}/min": float(ratios.min()) if ratios.size else 0.0,
        f"{name}/mean": float(ratios.mean()) if ratios.size else 0.0,
        f"{name}/max": float(ratios.max()) if ratios.size else 0.0,
    }


def check_same_model(rollouts: Rollouts, args: SPOConfig) -> None:
    """Stop before anything is learned from completions of another model than the policy.

    Raises:
        EngineError: vLLM's log-probs and the policy's are too far apart for one model.
    """
    if not args.use_vllm or rollouts.token_logprobs_sampler is None:
        return
    apart = _apart(rollouts)
    if apart.size and apart.mean() > FAR_APART:
        raise EngineError(
            f"Step {rollouts.step}: vLLM's log-probs are {apart.mean():.1f} nats a token from the "
            "policy's own, so it samples from another model or adapter: start it with the model "
            "that is trained, and with --logprobs-mode processed_logprobs."
        )


def _apart(rollouts: Rollouts) -> Float[np.ndarray, " N"]:
    """|log π_old − log π_sampler| of the tokens that the engine chose and had a number for."""
    apart = np.abs(rollouts.token_logprobs_old - rollouts.token_logprobs_sampler)[rollouts.actions]
    return apart[~np.isnan(apart)]
