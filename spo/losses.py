"""Log-probs, advantages, values -> losses. Pure torch.

Every loss is Σ weight · token loss, with weights that the caller computes over the whole
optimizer update (`token_weights`). So the sum over micro-batches and processes is the loss of
the update, however it was split.

A loss returns `(loss, sums)`: a scalar with gradient, and detached sums by the name of what they
add up, for the metrics.

Axes: b rows of a micro-batch, T its completion tokens. A `log_ratio` is current minus other.
"""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spo.kl import kl_k3

Sums = dict[str, Float[Tensor, ""]]
LossType = Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"]


def token_weights(
    loss_mask: Bool[np.ndarray, "U T"],
    loss_type: LossType,
    max_completion_length: int,
    num_rows: int | None = None,
) -> Float[np.ndarray, "U T"]:
    """Weight of each token of one optimizer update; U completions over all processes.

    With n_b tokens in completion b, N in all, and R completions:
    'dapo', 'bnpo' and 'cispo' 1/N (DAPO, arXiv 2503.14476, eq. 8); 'grpo' and 'sapo' 1/(R n_b)
    (arXiv 2402.03300, eq. 3); 'dr_grpo' 1/(R · max_completion_length) (arXiv 2503.20783).

    >>> token_weights(np.array([[True, True], [True, False]]), "grpo", 2)
    array([[0.25, 0.25],
           [0.5 , 0.  ]])

    Args:
        num_rows: R, where completions count that have no token in the mask (masked truncated
            ones); None: those that have any.
    """
    lengths = loss_mask.sum(1, keepdims=True)
    num_rows = max(int((lengths > 0).sum()) if num_rows is None else num_rows, 1)
    match loss_type:
        case "grpo" | "sapo":
            return loss_mask / (num_rows * np.maximum(lengths, 1))
        case "dr_grpo":
            return loss_mask / (num_rows * max_completion_length)
        case "dapo" | "bnpo" | "cispo":
            return loss_mask / max(int(lengths.sum()), 1)
    raise ValueError(f"loss_type={loss_type!r} is not one of {', '.join(get_args(LossType))}.")


def aggregate_log_ratio(
    token_log_ratio: Float[Tensor, "b T"],
    mask: Bool[Tensor, "b T"],
    segment_ids: Int[Tensor, "b T"],
    level: Literal["token", "segment", "sequence"],
) -> Float[Tensor, "b T"]:
    """The log of the importance ratio each token is weighted with.

    'segment' and 'sequence' spread the mean log-ratio of the segment or completion over its
    tokens, which is the log of the geometric mean of the token ratios (for the sequence: GSPO,
    arXiv 2507.18071, eq. 7).

    >>> ratio = torch.tensor([[0.0, 0.2, 0.6]])
    >>> ids = torch.tensor([[0, 0, 1]])
    >>> aggregate_log_ratio(ratio, ids >= 0, ids, "segment")
    tensor([[0.1000, 0.1000, 0.6000]])
    """
    if level == "token":
        return token_log_ratio
    groups = torch.zeros_like(segment_ids) if level == "sequence" else segment_ids.clamp(min=0)
    token_log_ratio = torch.where(mask, token_log_ratio, 0.0)
    sums = torch.zeros_like(token_log_ratio).scatter_add(1, groups, token_log_ratio)
    counts = torch.zeros_like(token_log_ratio).scatter_add(1, groups, mask.to(sums.dtype))
    return (sums / counts.clamp(min=1)).gather(1, groups) * mask


def policy_loss(
    token_logprobs: Float[Tensor, "b T"],
    token_logprobs_old: Float[Tensor, "b T"],
    token_advantages: Float[Tensor, "b T"],
    weights: Float[Tensor, "b T"],
    segment_ids: Int[Tensor, "b T"],
    *,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
    importance_sampling_level: Literal["token", "segment", "sequence"] = "token",
    token_logprobs_ref: Float[Tensor, "b T"] | None = None,
    beta: float = 0.0,
    use_bias_correction_kl: bool = False,
    loss_type: LossType = "dapo",
    sapo_temperatures: tuple[float, float] = (1.0, 1.05),
) -> tuple[Float[Tensor, ""], Sums]:
    """Σ weight · [ −surrogate + β k3 ], with ρ = π / π_old and the surrogate of `loss_type`; k3
    times ρ with `use_bias_correction_kl`, which makes its gradient that of the KL (arXiv
    2512.02556).

        'cispo'  min(ρ, ε_high) A log π, no gradient through the ratio (arXiv 2506.13585, eq. 4)
        'sapo'   (4 / τ) σ(τ (ρ − 1)) A, τ of A > 0 and of A ≤ 0 in `sapo_temperatures`
                 (arXiv 2511.20347)
        others   min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A): `clipped_surrogate`

    What stands at a weight of 0 is replaced: 0 · NaN would be NaN in the gradient. The sums: the
    loss, its tokens, how many of them are clipped, and k3 of the old policy.
    """
    mask = weights > 0
    token_logprobs, token_logprobs_old, token_advantages = (
        torch.where(mask, x, 0.0) for x in (token_logprobs, token_logprobs_old, token_advantages)
    )
    log_ratio = aggregate_log_ratio(
        token_logprobs - token_logprobs_old, mask, segment_ids, importance_sampling_level
    )
    ratio = log_ratio.exp()
    high = epsilon if epsilon_high is None else epsilon_high
    match loss_type:
        case "cispo":
            surrogate = ratio.clamp(max=high).detach() * token_advantages * token_logprobs
            clipped = (ratio > high) & (token_advantages > 0)
        case "sapo":
            surrogate = soft_gate(ratio, token_advantages, *sapo_temperatures) * token_advantages
            clipped = torch.zeros_like(mask)
        case _:
            surrogate, clipped = clipped_surrogate(ratio, token_advantages, epsilon, high, delta)
    token_loss = -surrogate
    if token_logprobs_ref is not None and beta:
        token_kl = kl_k3(token_logprobs, torch.where(mask, token_logprobs_ref, 0.0))
        token_loss = token_loss + beta * token_kl * (ratio if use_bias_correction_kl else 1.0)
    loss = (token_loss * weights)[mask].sum()
    with torch.no_grad():
        sums = {
            "policy_loss": loss.detach(),
            "policy_tokens": mask.sum(),
            "clipped": (clipped & mask).sum(),
            "approx_kl": kl_k3(token_logprobs_old, token_logprobs)[mask].sum(),
        }
    return loss, sums


def clipped_surrogate(
    ratio: Float[Tensor, "b T"],
    token_advantages: Float[Tensor, "b T"],
    epsilon: float,
    epsilon_high: float,
    delta: float | None = None,
) -> tuple[Float[Tensor, "b T"], Bool[Tensor, "b T"]]:
    """PPO's min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A), and where it is flat (arXiv 1707.06347, eq. 7).

    `delta` also bounds ρ itself where A < 0, where the minimum has no bound (two-sided clipping,
    arXiv 2505.07291).
    """
    clipped_ratio = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    surrogate = torch.min(bounded * token_advantages, clipped_ratio * token_advantages)
    too_low = (ratio < 1 - epsilon) & (token_advantages < 0)
    too_high = (ratio > 1 + epsilon_high) & (token_advantages > 0)
    return surrogate, too_low | too_high


def soft_gate(
    ratio: Float[Tensor, "b T"],
    token_advantages: Float[Tensor, "b T"],
    temperature_pos: float,
    temperature_neg: float,
) -> Float[Tensor, "b T"]:
    """SAPO's smooth stand-in for the clipped ratio: (4 / τ) σ(τ (ρ − 1)), whose slope is 1 at
    ρ = 1 and falls to both sides, the faster the larger τ.

    >>> soft_gate(torch.ones(1, 1), torch.ones(1, 1), 1.0, 1.05)
    tensor([[2.]])
    """
    temperatures = torch.full_like(ratio, temperature_neg)
    temperatures[token_advantages > 0] = temperature_pos
    return torch.sigmoid(temperatures * (ratio - 1)) * 4 / temperatures


def positive_nll(
    token_logprobs: Float[Tensor, "b T"],
    completion_rewards: Float[Tensor, " b"],
    weights: Float[Tensor, "b T"],
) -> Float[Tensor, ""]:
    """−Σ weight · max(R, 0) · log π: the likelihood of what was rewarded.

    VAPO's "positive example LM loss" (arXiv 2504.05118), there for answers that are right. While
    advantages of both signs push a policy off as many of its own answers as they push it towards,
    this pulls towards them alone, all tokens alike.

    >>> positive_nll(torch.tensor([[-2.0], [-3.0]]), torch.tensor([0.5, -1.0]), torch.ones(2, 1))
    tensor(1.)
    """
    mask = weights > 0
    rewards = torch.where(mask, completion_rewards.clamp(min=0)[:, None], 0.0)
    return -(weights * rewards * torch.where(mask, token_logprobs, 0.0)).sum()


def value_loss(
    token_values: Float[Tensor, "b T"],
    token_returns: Float[Tensor, "b T"],
    token_values_old: Float[Tensor, "b T"],
    weights: Float[Tensor, "b T"],
    cliprange: float | None = None,
) -> tuple[Float[Tensor, ""], Sums]:
    """Σ weight · ½ (V − return)², or, clipped, the larger of that and the same at
    V_old + clip(V − V_old, ±cliprange).

    >>> one = torch.ones(1, 1)
    >>> value_loss(3 * one, one, one, one)[0], value_loss(3 * one, one, one, one, 0.5)[0]
    (tensor(2.), tensor(2.))
    """
    mask = weights > 0
    token_values, token_returns, token_values_old = (
        torch.where(mask, x, 0.0) for x in (token_values, token_returns, token_values_old)
    )
    squared = (token_values - token_returns) ** 2
    if cliprange is not None:
        moved = (token_values - token_values_old).clamp(-cliprange, cliprange)
        squared = torch.max(squared, (token_values_old + moved - token_returns) ** 2)
    loss = 0.5 * (squared * weights)[mask].sum()
    return loss, {"value_loss": loss.detach()}
