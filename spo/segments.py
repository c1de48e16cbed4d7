"""Token entropies -> segment boundaries -> segment ids. Pure numpy, the global rollout batch.

Axes: B completions, T completion tokens (right-padded). Boundaries are chosen over the whole
batch at once, so a completion full of decisions gets many segments and a plain one gets few.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

MIN_BOUNDARY_ENTROPY = 1e-6
"""Below this many nats a token was no decision, however few tokens rank above it."""


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
        completion_mask: True at sampled tokens.
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
    eligible = entropies > MIN_BOUNDARY_ENTROPY
    count = min(round(entropy_percentile * entropies.size), int(eligible.sum()))

    chosen = np.zeros(entropies.size, dtype=bool)
    if count:
        cut = np.partition(entropies, entropies.size - count)[entropies.size - count]
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


def entropy_cut(
    token_entropies: Float[np.ndarray, "B T"], boundaries: Bool[np.ndarray, "B T"]
) -> float | None:
    """The lowest entropy that became a boundary, in nats: the threshold that cut; None if none."""
    return float(token_entropies[boundaries].min()) if boundaries.any() else None
