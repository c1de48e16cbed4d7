"""Rollouts -> segment boundaries -> segment ids. Pure numpy, the global rollout batch.

`segment` is what training and the inspector call; the rules it chooses from stand below it. By
entropy and by probability, boundaries are chosen over the whole batch at once, so a completion
full of decisions gets many segments and a plain one gets few.

Axes: B completions, T completion tokens (right-padded).
"""

import re

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.config import SPOConfig
from spo.rollouts import Rollouts

MIN_BOUNDARY_ENTROPY = 1e-6
"""Below this many nats a token was no decision, however few tokens rank above it."""


def segment(rollouts: Rollouts, config: SPOConfig) -> Int[np.ndarray, "B T"]:
    """Cut every completion by the rule `config.segmentation`: ids 0, 1, 2, …; −1 on padding.

    Completions outside the loss (unscorable, or truncated under `mask_truncated_completions`) stay
    one segment. Whatever the rule, a segment also starts where the policy speaks again after a
    tool or the environment; their tokens end the segment before.
    """
    mask = rollouts.loss_mask(config.mask_truncated_completions)
    match config.segmentation:
        case "entropy":
            chosen = find_boundaries(rollouts.token_entropies, mask, config.entropy_percentile)
        case "probability":
            surprisal = -rollouts.token_logprobs_old
            chosen = find_boundaries(surprisal, mask, config.entropy_percentile)
        case "fixed":
            chosen = fixed_boundaries(mask, config.segment_length)
        case "delimiter":
            ends = rollouts.token_ends
            chosen = delimiter_boundaries(rollouts.completions, ends, config.segment_delimiter)
        case "turn":
            chosen = np.zeros_like(mask)
    boundaries = (chosen | turn_boundaries(rollouts.actions)) & mask
    return segment_ids_from_boundaries(boundaries, rollouts.completion_mask)


def find_boundaries(
    token_entropies: Float[np.ndarray, "B T"],
    completion_mask: Bool[np.ndarray, "B T"],
    entropy_percentile: float,
) -> Bool[np.ndarray, "B T"]:
    """Mark the k = round(p·N) highest-entropy tokens among the N valid ones.

    Exactly k tokens, ties going to the earlier (row, position); fewer only where the entropy is
    at most `MIN_BOUNDARY_ENTROPY`, which is never a decision unless p = 1 asks for every token.
    A threshold test `H >= quantile` would not do: a peaked policy has thousands of equal
    entropies, and the set jumps from 5 % to all of them. "Beyond the 80/20 Rule"
    (arXiv 2506.01939) shows that high-entropy tokens are where the paths of reasoning fork.

    >>> find_boundaries(np.array([[0.2, 0.3, 2.8, 0.4]]), np.ones((1, 4), bool), 0.25)
    array([[False, False,  True, False]])

    Args:
        token_entropies: nats, of the rollout policy; values at masked tokens are ignored.
        completion_mask: True at the tokens to choose among.
        entropy_percentile: p in [0, 1], the fraction of tokens to mark.

    Raises:
        ValueError: p outside [0, 1], shapes that differ, or NaN at a valid token.
    """
    if not 0.0 <= entropy_percentile <= 1.0:
        raise ValueError(f"entropy_percentile={entropy_percentile} must lie in [0, 1].")
    if token_entropies.shape != completion_mask.shape:
        raise ValueError(
            f"token_entropies {token_entropies.shape} and completion_mask "
            f"{completion_mask.shape} must have one shape."
        )
    if entropy_percentile == 1.0:
        return completion_mask.copy()
    entropies = token_entropies[completion_mask]  # (N,) in (row, position) order
    if np.isnan(entropies).any():
        raise ValueError("token_entropies is NaN at a valid token.")
    count, cut = _count_and_cut(entropies, entropy_percentile)
    chosen = np.zeros(entropies.size, dtype=bool)
    if count:
        chosen = entropies > cut
        ties = np.flatnonzero(entropies == cut)
        chosen[ties[: count - int(chosen.sum())]] = True
    boundaries = np.zeros(completion_mask.shape, dtype=bool)
    boundaries[completion_mask] = chosen
    return boundaries


def segment_ids_from_boundaries(
    boundaries: Bool[np.ndarray, "B T"], completion_mask: Bool[np.ndarray, "B T"]
) -> Int[np.ndarray, "B T"]:
    """Number the segments of each row 0, 1, 2, …; −1 on padding.

    A boundary starts a segment; token 0 starts segment 0 whether it is one or not, so the tokens
    before the first boundary are an ordinary segment.

    >>> segment_ids_from_boundaries(
    ...     np.array([[False, False, True, False]]), np.array([[True, True, True, False]])
    ... )
    array([[ 0,  0,  1, -1]])
    """
    starts = boundaries & completion_mask
    starts[:, :1] = False
    return np.where(completion_mask, np.cumsum(starts, axis=1), -1)


def segment_starts(segment_ids: Int[np.ndarray, "B T"]) -> Bool[np.ndarray, "B T"]:
    """True at the first token of each segment.

    >>> segment_starts(np.array([[0, 0, 1, -1]]))
    array([[ True, False,  True, False]])
    """
    starts = segment_ids >= 0
    starts[:, 1:] &= segment_ids[:, 1:] != segment_ids[:, :-1]
    return starts


def at_segment_starts(
    numbers: Float[np.ndarray, "B T"], segment_ids: Int[np.ndarray, "B T"]
) -> Float[np.ndarray, "B T"]:
    """The number at the first token of each token's segment; anything on padding."""
    starts = segment_starts(segment_ids)
    first = np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), 0), axis=1)
    return np.take_along_axis(numbers, first, axis=1)


def entropy_threshold(
    token_entropies: Float[np.ndarray, "B T"],
    completion_mask: Bool[np.ndarray, "B T"],
    entropy_percentile: float,
) -> float | None:
    """The lowest entropy that `find_boundaries` makes a boundary, in nats; None if there is none.

    >>> entropy_threshold(np.array([[0.2, 0.3, 2.8, 0.4]]), np.ones((1, 4), bool), 0.5)
    0.4
    """
    entropies = token_entropies[completion_mask]
    if entropy_percentile == 1.0:
        return float(entropies.min()) if entropies.size else None
    count, cut = _count_and_cut(entropies, entropy_percentile)
    return float(cut) if count else None


def _count_and_cut(entropies: Float[np.ndarray, " N"], entropy_percentile: float):
    """How many tokens are marked, and the lowest entropy among them."""
    eligible = int((entropies > MIN_BOUNDARY_ENTROPY).sum())
    count = min(round(entropy_percentile * entropies.size), eligible)
    cut = np.partition(entropies, entropies.size - count)[entropies.size - count] if count else None
    return count, cut


def fixed_boundaries(
    action_mask: Bool[np.ndarray, "B T"], segment_length: int
) -> Bool[np.ndarray, "B T"]:
    """Every `segment_length`-th action token, counted along each row.

    >>> fixed_boundaries(np.ones((1, 5), bool), 2)
    array([[ True, False,  True, False,  True]])
    """
    position = np.cumsum(action_mask, axis=1) - 1
    return action_mask & (position % segment_length == 0)


def delimiter_boundaries(
    completions: list[str], token_ends: Int[np.ndarray, "B T"], pattern: str
) -> Bool[np.ndarray, "B T"]:
    r"""The first token that begins at or after the end of each match of the regular expression.

    A token that holds the end of a match and the text behind it belongs to the segment before.

    >>> delimiter_boundaries(["a\nbc"], np.array([[1, 2, 3, 4]]), r"\n")
    array([[False, False,  True, False]])
    """
    boundaries = np.zeros(token_ends.shape, dtype=bool)
    for row, text in enumerate(completions):
        num_tokens = int((token_ends[row] >= 0).sum())
        starts = np.concatenate([[0], token_ends[row, : max(num_tokens - 1, 0)]])
        matches = [match.end() for match in re.finditer(pattern, text) if match.group()]
        if not (num_tokens and matches):
            continue
        byte_of = np.cumsum([0, *(len(character.encode()) for character in text)])
        first = np.searchsorted(starts, byte_of[matches])
        boundaries[row, first[first < num_tokens]] = True
    return boundaries


def turn_boundaries(action_mask: Bool[np.ndarray, "B T"]) -> Bool[np.ndarray, "B T"]:
    """The first action token after a stretch of others.

    >>> turn_boundaries(np.array([[True, False, False, True, True]]))
    array([[False, False, False,  True, False]])
    """
    boundaries = np.zeros_like(action_mask)
    boundaries[:, 1:] = action_mask[:, 1:] & ~action_mask[:, :-1]
    return boundaries
