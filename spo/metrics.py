"""Rollouts and credit -> the numbers a person watches. Pure numpy."""

import numpy as np
from jaxtyping import Bool, Float, Real

from spo.config import SPOConfig
from spo.kl import kl_k3
from spo.mismatch import mismatch_metrics
from spo.rollouts import Credit, Rollouts


def explained_variance(
    values: Float[np.ndarray, "*shape"],
    returns: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
) -> float | None:
    """1 − Var(return − V) / Var(return) over the masked tokens; None where all returns agree.

    1: the critic predicts every return; 0: no better than a constant; below: worse.

    >>> mask = np.ones(2, bool)
    >>> explained_variance(np.array([0.0, 1.0]), np.array([0.0, 2.0]), mask)
    0.75
    """
    residual, target = (returns - values)[mask].astype(np.float64), returns[mask].astype(np.float64)
    if target.size < 2 or target.var() < 1e-12:
        return None
    return float(1 - residual.var() / target.var())


def rollout_metrics(rollouts: Rollouts, credit: Credit, config: SPOConfig) -> dict[str, float]:
    """Rewards, lengths, entropy, segments and critic fit of one rollout batch."""
    mask = rollouts.actions
    lengths = mask.sum(1)
    in_loss = rollouts.loss_mask(config.mask_truncated_completions)
    segments = credit.segment_ids.max(axis=1, initial=-1) + 1
    metrics = rollouts.logged_metrics | {
        "reward": _mean(rollouts.completion_rewards),
        "reward_std": _std(rollouts.completion_rewards),
        "frac_reward_zero_std": zero_spread_fraction(rollouts),
        "entropy": float(rollouts.token_entropies[mask].mean()) if mask.any() else 0.0,
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(rollouts.truncated.mean()),
        "spo/mean_segments_per_sequence": float(segments.mean()),
        "spo/advantage_abs_mean": _mean(np.abs(credit.token_advantages[in_loss])),
    }
    if rollouts.tool_calls is not None:
        metrics |= tool_metrics(rollouts.tool_calls, rollouts.tool_failures)
    for i, name in enumerate(rollouts.reward_names):
        metrics[f"rewards/{name}/mean"] = _mean(rollouts.rewards_by_function[:, i])
        metrics[f"rewards/{name}/std"] = _std(rollouts.rewards_by_function[:, i])
    if credit.entropy_threshold is not None:
        metrics["spo/entropy_threshold"] = credit.entropy_threshold
    if rollouts.token_logprobs_ref is not None and mask.any():
        k3 = kl_k3(rollouts.token_logprobs_old[mask], rollouts.token_logprobs_ref[mask])
        metrics["kl"] = float(k3.mean())
    metrics |= mismatch_metrics(rollouts, config)
    if rollouts.token_values is not None:
        metrics["spo/value_mean"] = _mean(rollouts.token_values[in_loss])
        metrics["spo/return_mean"] = _mean(credit.token_returns[in_loss])
        explained = explained_variance(rollouts.token_values, credit.token_returns, in_loss)
        if explained is not None:
            metrics["spo/explained_variance"] = explained
    return metrics


def zero_spread_fraction(rollouts: Rollouts) -> float:
    """Fraction of prompt groups whose scorable rewards are all equal: no signal for GRPO."""
    groups = rollouts.completion_rewards.reshape(-1, rollouts.num_generations)
    low = np.nanmin(np.where(np.isnan(groups), np.inf, groups), axis=1)
    high = np.nanmax(np.where(np.isnan(groups), -np.inf, groups), axis=1)
    return float((high - low <= 1e-8).mean())


def tool_metrics(
    tool_calls: Real[np.ndarray, " B"], tool_failures: Real[np.ndarray, " B"]
) -> dict[str, float]:
    """Calls per completion, and the fraction of calls that failed.

    >>> tool_metrics(np.array([2, 0]), np.array([1, 0]))
    {'tools/call_frequency': 1.0, 'tools/failure_frequency': 0.5}
    """
    calls = float(tool_calls.sum())
    return {
        "tools/call_frequency": calls / max(len(tool_calls), 1),
        "tools/failure_frequency": float(tool_failures.sum()) / max(calls, 1.0),
    }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def _std(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if known.size > 1 else 0.0
