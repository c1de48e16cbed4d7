"""How far to trust a critic, measured: a factor on its values, and the λ that suits it. Pure numpy.

Axes: B completions, prompt-major in groups of G; T completion tokens.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.segments import at_segment_starts, segment_starts

MAX_COEFFICIENT = 2.0
LAMBDAS = tuple(round(0.05 * i, 2) for i in range(20))
NEARLY_BEST = 0.97
"""Of two λ that serve alike the higher one leans less on values that may be wrong."""


def value_coefficients(
    token_values: Float[np.ndarray, "B T"],
    token_returns: Float[np.ndarray, "B T"],
    segment_ids: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    num_generations: int = 1,
) -> Float[np.ndarray, " B"]:
    r"""The factor c on each completion's values that makes advantages small, from other prompts.

    At λ = 1 the advantage of a token is R − c V, V the value at its segment's first token, and the
    gradient's variance falls with Σ (R − c V)². With s_g = Σ R V and q_g = Σ V² over the tokens of
    prompt g, the best factor for prompt h, from all the others, is

        c_h = Σ_{g≠h} s_g / Σ_{g≠h} q_g,   v_h = Σ_{g≠h} (s_g − c_h q_g)² / (Σ_{g≠h} q_g)²,

    v its variance. What is used is c_h · max(0, 1 − v_h / c_h²), at most `MAX_COEFFICIENT`, and 0
    where c_h < 0: a critic that is not clearly better than none is left out. A completion has no
    part in its own factor, so c V is a baseline as V is (cross-fitting). 1 where there is no other
    prompt.

    >>> value_coefficients(np.full((3, 1), 0.5), np.ones((3, 1)), np.zeros((3, 1), int),
    ...                    np.ones((3, 1), bool))
    array([2., 2., 2.])
    """
    values = np.where(mask, at_segment_starts(token_values, segment_ids), 0.0)
    returns = np.where(mask, token_returns, 0.0)
    products = (returns * values).sum(1).reshape(-1, num_generations).sum(1)
    squares = (values * values).sum(1).reshape(-1, num_generations).sum(1)
    others = ~np.eye(len(products), dtype=bool)
    total = others @ squares
    known = total > 0
    total = np.where(known, total, 1.0)
    factors = (others @ products) / total
    residuals = np.where(others, products - factors[:, None] * squares, 0.0)
    variances = (residuals**2).sum(1) / total**2
    shrunk = factors - variances / np.where(factors > 0, factors, 1.0)
    trusted = np.where(factors > 0, np.clip(shrunk, 0.0, MAX_COEFFICIENT), 0.0)
    return np.repeat(np.where(known, trusted, 1.0), num_generations)


def credit_correlation(lam: float, explained: float, num_segments: float) -> float:
    r"""How well advantages at λ agree with exact ones, if the critic explains that share of a path.

    A model: the return is the sum of what K segments did, equal and independent parts. Of each part
    the critic sees the share q at once; the rest comes out with the reward. Then, n segments before
    the last, with unit variance per part,

        cov(Â, A) = q + λⁿ (1 − q),
        var(Â) = q (1 − λ^{2(n+1)}) / (1 − λ²) + λ^{2n} K (1 − q),

    and the correlation over all segments is Σ_n cov / √(K Σ_n var), n = 0 … K − 1.

    >>> credit_correlation(0.0, 1.0, 10)  # a right critic needs nothing but its next value
    1.0
    >>> round(credit_correlation(1.0, 0.0, 10), 4)  # with none, 1 / √K
    0.3162
    """
    later = np.arange(max(round(num_segments), 1))
    seen = later + 1.0 if lam == 1 else (1 - lam ** (2 * (later + 1))) / (1 - lam**2)
    weight = np.power(lam, later)
    covariance = explained + weight * (1 - explained)
    variance = explained * seen + weight**2 * len(later) * (1 - explained)
    return float(covariance.sum() / math.sqrt(len(later) * variance.sum()))


class AutoLambda:
    """λ for the batch that comes, from how much of a path's outcome the critic explained of late.

    q = Σ (e_0² − e_k²) / Σ e_0² k/K over segments, e_k = R − V_k the error before segment k of K:
    how much faster than nothing the error falls along a completion. A critic that only knows how
    hard a prompt is has q = 0; exact values have about 1. λ is the highest of `LAMBDAS` at which
    `credit_correlation` is `NEARLY_BEST`. A completion counts e^(−age / memory), and a batch's λ
    comes from the batches before it: it is fixed before the completions are.

    Attributes:
        sums: of e_0² − e_k², of e_0² k/K, of segments and of completions, (4,).
    """

    def __init__(self, start: float = 0.95, memory: float = 256.0):
        """`start`: λ of the first batch."""
        self.start, self.memory = start, memory
        self.sums = np.zeros(4)

    @property
    def explained(self) -> float | None:
        """q within [0, 1]; None before the first batch."""
        fallen, possible = self.sums[:2]
        return float(np.clip(fallen / possible, 0.0, 1.0)) if possible > 0 else None

    @property
    def lam(self) -> float:
        if self.explained is None:
            return self.start
        segments = self.sums[2] / self.sums[3]
        found = {lam: credit_correlation(lam, self.explained, segments) for lam in LAMBDAS}
        enough = NEARLY_BEST * max(found.values())
        return max(lam for lam, correlation in found.items() if correlation >= enough)

    def observe(
        self,
        token_values: Float[np.ndarray, "B T"],
        token_returns: Float[np.ndarray, "B T"],
        segment_ids: Int[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> None:
        """Take in a batch: values as used, returns without bootstrap, masked tokens only."""
        starts = segment_starts(segment_ids) & mask
        rows = starts.any(1)
        if not rows.any():
            return
        starts, segment_ids = starts[rows], segment_ids[rows]
        errors = np.where(starts, (token_returns[rows] - token_values[rows]) ** 2, 0.0)
        begins = starts.argmax(1)[:, None]
        first = np.take_along_axis(errors, begins, axis=1)
        count = starts.sum(1, keepdims=True)
        fallen = np.where(starts, first - errors, 0.0).sum(dtype=np.float64)
        possible = np.where(starts, first * segment_ids / count, 0.0).sum(dtype=np.float64)
        self.sums *= math.exp(-len(mask) / self.memory)
        self.sums += [fallen, possible, starts.sum(), len(starts)]

    def state(self) -> dict[str, np.ndarray]:
        """Writing into these arrays restores it."""
        return {"sums": self.sums}
