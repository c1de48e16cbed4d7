"""Rewards, values, segments -> advantages and returns. Pure numpy, the global rollout batch.

`assign_credit` composes the pieces. The trainer and the inspector both call it, so what the
inspector shows is what training used.

Axes: B completions (prompt-major, groups of `num_generations`), T completion tokens.
`token_values[b, t]` is V(s_t), the value *before* token t.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.config import SPOConfig
from spo.kl import kl_k1
from spo.rollouts import Credit, Rollouts
from spo.segments import at_segment_starts, entropy_threshold, segment, segment_starts

MIN_STD = 1e-6
"""Advantages with a smaller spread than this are left as they are: dividing would scale noise."""


def segment_gae(
    token_rewards: Float[np.ndarray, "B T"],
    token_values: Float[np.ndarray, "B T"],
    segment_ids: Int[np.ndarray, "B T"],
    gamma: float,
    lam: float,
    level: Literal["segment", "token"] = "segment",
    segment_value: Literal["start", "mean", "last"] = "start",
) -> Float[np.ndarray, "B T"]:
    r"""Generalized advantage estimation whose time step is the segment.

    With segment k starting at b_k, R_k the sum of its token rewards, V_k = V(s_{b_k}) and V = 0
    after the last segment:

        δ_k = R_k + γ V_{k+1} − V_k
        A_k = δ_k + γ λ A_{k+1}

    computed as one scan over tokens,

        δ_t = r_t + g_{t+1} V_{t+1} − V_t
        A_t = δ_t + g_{t+1} l_{t+1} A_{t+1}

    with g = γ, l = λ where token t+1 starts a segment and g = l = 1 inside one, so that the sum
    telescopes inside a segment. GAE: Schulman et al. 2016 (arXiv 1506.02438), eq. 16; here the
    decay counts segments, not tokens. One segment per token is textbook token GAE.

    Two segments, reward 1 at the end, V = 0.5 before each:
    A_1 = 1 − 0.5, A_0 = (0.5 − 0.5) + 0.9 · A_1.

    >>> segment_gae(np.array([[0.0, 0.0, 1.0]]), np.array([[0.5, 0.1, 0.5]]),
    ...             np.array([[0, 0, 1]]), gamma=1.0, lam=0.9)
    array([[0.45, 0.45, 0.5 ]])

    Args:
        token_rewards, token_values: values at padding (segment id −1) are ignored.
        level: "segment": every token gets its segment's advantage, the scan read at the segment's
            first token; "token": the scan itself (lower variance, same bias).
        segment_value: V_k as the value before the segment's first token ("start", unbiased), the
            mean over its tokens or the value before its last one (biased ablations).

    Returns:
        float64, 0 on padding.
    """
    valid = segment_ids >= 0
    starts = segment_starts(segment_ids)
    values = np.where(valid, token_values, 0.0).astype(np.float64)
    rewards = np.where(valid, token_rewards, 0.0).astype(np.float64)
    if segment_value != "start":
        if level == "token":
            raise ValueError("segment_value other than 'start' needs level='segment'.")
        values = _spread_segment_value(values, segment_ids, segment_value)

    advantages = _scan(rewards, values, valid, starts, gamma, lam)
    if level == "token":
        return advantages
    return np.where(valid, at_segment_starts(advantages, segment_ids), 0.0)


def _scan(rewards, values, valid, starts, gamma: float, lam: float):
    """The reversed token scan of `segment_gae`; columns are time, rows run in parallel."""
    num_rows, num_tokens = rewards.shape
    rewards, values, valid, starts = (
        np.ascontiguousarray(x.T) for x in (rewards, values, valid, starts)
    )
    g = np.where(starts, gamma, 1.0)
    gl = np.where(starts, gamma * lam, 1.0)
    advantages = np.zeros((num_tokens + 1, num_rows))
    next_value = np.zeros(num_rows)
    next_g, next_gl = np.ones(num_rows), np.ones(num_rows)
    for t in reversed(range(num_tokens)):
        delta = rewards[t] + next_g * next_value - values[t]
        advantages[t] = valid[t] * (delta + next_gl * advantages[t + 1])
        next_value, next_g, next_gl = values[t], g[t], gl[t]
    return advantages[:-1].T


def _spread_segment_value(values, segment_ids, segment_value: str):
    """Replace each value by its segment's mean or last one."""
    valid = segment_ids >= 0
    rows = np.arange(len(segment_ids))[:, None] * (segment_ids.shape[1] + 1)
    _, segment = np.unique(np.where(valid, rows + segment_ids, -1)[valid], return_inverse=True)
    if segment_value == "mean":
        per_segment = np.bincount(segment, values[valid]) / np.bincount(segment)
    else:
        per_segment = np.zeros(segment.max(initial=-1) + 1)
        per_segment[segment] = values[valid]  # the last write of a segment is its last token
    spread = np.zeros_like(values)
    spread[valid] = per_segment[segment]
    return spread


def group_advantages(
    completion_rewards: Float[np.ndarray, " B"],
    num_generations: int,
    scale: Literal["group", "batch", "none"] = "group",
) -> Float[np.ndarray, " B"]:
    """GRPO's advantage: reward minus the group's mean, over the std (n − 1) + 1e-4.

    Shao et al. 2024 (arXiv 2402.03300), §4.1.2; the constants are TRL's. NaN marks an unscorable
    completion: out of mean and std, advantage 0.

    >>> group_advantages(np.array([0.0, 1.0, 1.0, 1.0]), num_generations=2, scale="none")
    array([-0.5,  0.5,  0. ,  0. ])

    Raises:
        ValueError: the number of completions is no multiple of `num_generations`.
    """
    if len(completion_rewards) % num_generations:
        raise ValueError(
            f"{len(completion_rewards)} completions do not form groups of {num_generations}."
        )
    rewards = np.asarray(completion_rewards, dtype=np.float64)
    return np.nan_to_num(_centred(rewards, num_generations, scale), nan=0.0)


def _centred(rewards, num_generations: int, scale: str):
    """Rewards less the mean of their group, scaled, (B,); NaN stays."""
    groups = rewards.reshape(-1, num_generations)
    centred = (groups - _nan_mean(groups)).reshape(-1)
    if scale == "group":
        centred /= np.repeat(_nan_std(groups), num_generations) + 1e-4
    elif scale == "batch":
        centred /= _nan_std(rewards[None])[0] + 1e-4
    return centred


def _nan_mean(rows):
    """Mean of each row without its NaNs, (P, 1); 0 where nothing is left."""
    known = ~np.isnan(rows)
    return np.where(known, rows, 0.0).sum(1, keepdims=True) / np.maximum(
        known.sum(1, keepdims=True), 1
    )


def _nan_std(rows):
    """Std (n − 1) of each row without its NaNs, (P,); 0 with fewer than two."""
    known = ~np.isnan(rows)
    squares = np.where(known, rows - _nan_mean(rows), 0.0) ** 2
    return np.sqrt(squares.sum(1) / np.maximum(known.sum(1) - 1, 1))


def normalize(
    token_advantages: Float[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"]
) -> Float[np.ndarray, "B T"]:
    """Shift and scale to mean 0 and std 1 over the masked tokens; 0 elsewhere.

    Unchanged with fewer than two tokens or a std below `MIN_STD`.
    """
    chosen = token_advantages[mask]
    if chosen.size < 2 or chosen.std() < MIN_STD:
        return np.where(mask, token_advantages, 0.0)
    return np.where(mask, (token_advantages - chosen.mean()) / chosen.std(), 0.0)


def objective_advantages(
    rewards_by_function: Float[np.ndarray, "B F"],
    reward_weights: list[float] | None,
    num_generations: int,
) -> Float[np.ndarray, " B"]:
    """Each reward function normalised within its group, the weighted sum within the batch.

    With z_f = (r_f − group mean) / (group std + 1e-4) and s = Σ_f w_f z_f,
    A = (s − mean) / (std + 1e-4) over the batch: GDPO (arXiv 2601.05242), TRL's
    "normalize_then_sum". So a function with a small spread counts as much as one with a large one.
    NaN of a function adds nothing; a row that none could score has advantage 0 and enters no mean.

    >>> objective_advantages(np.array([[0.0, 10.0], [1.0, 10.0]]), None, 2).round(2)
    array([-0.71,  0.71])
    """
    scores = np.asarray(rewards_by_function, dtype=np.float64)
    weights = np.ones(scores.shape[1]) if reward_weights is None else np.asarray(reward_weights)
    normalized = np.stack(
        [_centred(column, num_generations, "group") for column in scores.T], axis=1
    )
    sums = np.nansum(normalized * weights, axis=1)
    sums[np.isnan(scores).all(1)] = np.nan
    return np.nan_to_num(_centred(sums, len(sums), "group"), nan=0.0)


def rewards_in_loss(rollouts: Rollouts, config: SPOConfig) -> Float[np.ndarray, "B T"]:
    """What credit is made of: 0 in rows that could not be scored, less the KL penalty of each
    action where `kl_in_reward`."""
    rewards = rollouts.token_rewards
    if config.kl_in_reward:
        k1 = kl_k1(rollouts.token_logprobs_old, rollouts.token_logprobs_ref)
        rewards = rewards - config.beta * np.where(rollouts.actions, k1, 0.0)
    return np.where(rollouts.completion_mask & rollouts.scored[:, None], rewards, 0.0)


def monte_carlo_returns(rollouts: Rollouts, config: SPOConfig) -> Float[np.ndarray, "B T"]:
    """Σ_{k ≥ t} r_k: the critic's targets where γ = λ_critic = 1, whatever its values are."""
    rewards = rewards_in_loss(rollouts, config)  # 0 from a row's end on: so are their sums
    to_go = np.cumsum(rewards[:, ::-1], axis=1, dtype=np.float64)[:, ::-1]
    return to_go.astype(np.float32)


def assign_credit(
    rollouts: Rollouts, config: SPOConfig, segment_ids: Int[np.ndarray, "B T"] | None = None
) -> Credit:
    """Give every token its advantage and its return.

    Rows outside the loss (unscorable, or truncated under `mask_truncated_completions`) have
    advantage 0 and enter no statistic; but the reward of a truncated one stays in the mean and std
    of its group, as in TRL: how hard a prompt is, is told by all of its completions.

    Args:
        rollouts: with `token_values`, or without a critic None: group-relative advantages.
        segment_ids: None: as `spo.segments.segment` cuts.
    """
    mask = rollouts.loss_mask(config.mask_truncated_completions)
    if segment_ids is None:
        segment_ids = segment(rollouts, config)
    token_rewards = rewards_in_loss(rollouts, config)

    if rollouts.token_values is None:
        per_row = completion_advantages(rollouts, config)
        token_advantages, token_returns = np.where(mask, per_row[:, None], 0.0), None
    else:
        token_advantages, token_returns = _critic_credit(
            token_rewards, rollouts.token_values, segment_ids, mask, config
        )
    threshold = None
    if config.segmentation == "entropy":
        threshold = entropy_threshold(rollouts.token_entropies, mask, config.entropy_percentile)
    return Credit(segment_ids, token_advantages.astype(np.float32), token_returns, threshold)


def completion_advantages(rollouts: Rollouts, config: SPOConfig) -> Float[np.ndarray, " B"]:
    """Every completion's advantage over its group; of the truncated ones, too."""
    if config.multi_objective_aggregation == "normalize_then_sum":
        return objective_advantages(
            rollouts.rewards_by_function, config.reward_weights, rollouts.num_generations
        )
    counted = rollouts.loss_mask(mask_truncated_completions=False).any(1)
    sums = rewards_in_loss(rollouts, config).sum(1, dtype=np.float64)
    rewards = np.where(counted, sums, np.nan)
    return group_advantages(rewards, rollouts.num_generations, config.scale_rewards)


def _critic_credit(token_rewards, token_values, segment_ids, mask, config: SPOConfig):
    """Advantages and returns of the masked tokens, (B, T) each, from a critic's values."""
    token_advantages = segment_gae(
        token_rewards,
        token_values,
        segment_ids,
        config.gamma,
        config.lam,
        config.advantage_level,
        config.segment_value,
    )
    targets = segment_gae(
        token_rewards, token_values, segment_ids, config.gamma, config.lam_critic, level="token"
    )
    token_returns = np.where(mask, targets + token_values, 0.0).astype(np.float32)
    token_advantages = np.where(mask, token_advantages, 0.0)
    if config.normalize_advantages:
        token_advantages = normalize(token_advantages, mask)
    return token_advantages, token_returns
