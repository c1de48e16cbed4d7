"""Inputs known before each token -> a value, by least squares in closed form. Pure numpy.

A value may read all that was fixed before the token was drawn: the path so far, a reference
solution, other completions of the prompt. Then it is a baseline, and the gradient stays unbiased.
An `Inputs` turns rollouts into such numbers; `Regression` is the value source fitted on them.

Axes: B completions, T completion tokens, N tokens of all rows laid end to end, n inputs, D = 1 + n
+ n(n + 1)/2 of their products.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.rollouts import Rollouts

BLOCK = 8192
"""Tokens whose products are in memory at one time."""


@runtime_checkable
class Inputs(Protocol):
    """Numbers known before each token, of the order of 1, for a regression to read."""

    name: str
    width: int

    def read(self, rollouts: Rollouts) -> Float[np.ndarray, "B T n"]:
        """Anything on padding; element [b, t] must not depend on tokens ≥ t of row b."""
        ...

    def observe(self, rollouts: Rollouts) -> None:
        """Learn what later batches may be told about this one; called after the fit."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint has to hold; writing into these arrays restores it."""
        ...


def num_products(num_inputs: int) -> int:
    """A constant, the inputs, and the products of any two of them.

    >>> num_products(8)
    45
    """
    return 1 + num_inputs * (num_inputs + 3) // 2


def products(inputs: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "N D"]:
    """[1, f, f_i f_j for i ≤ j].

    >>> products(np.array([[2.0, 3.0]]))
    array([[1., 2., 3., 4., 6., 9.]])
    """
    first, second = np.triu_indices(inputs.shape[-1])
    constant = np.ones((len(inputs), 1))
    return np.concatenate([constant, inputs, inputs[:, first] * inputs[:, second]], axis=-1)


class Ridge:
    """Least squares on inputs, their squares and products, with exponential forgetting.

    w = (Σ x xᵀ + R)⁻¹ Σ x y over tokens, x = `products(inputs)`; a completion counts
    e^(−age / memory), age in completions since. So the fit follows the policy at once.

    Args:
        ridge: the diagonal of R for the constant, the inputs, and their products. Products are
            many: they have to earn their place, and a mean should not have to.
        clip: hold predictions within the range of the targets fitted so far; without it the first
            predictions, from few completions, can be absurd.

    Attributes:
        covariance, moments: Σ x xᵀ and Σ x y, (D, D) and (D,).
        bounds: lowest and highest target seen; +∞, −∞ before the first.
    """

    def __init__(
        self,
        num_inputs: int,
        ridge: tuple[float, float, float] = (1.0, 10.0, 100.0),
        memory: float = 256.0,
        clip: bool = True,
    ):
        size = num_products(num_inputs)
        counts = (1, num_inputs, size - 1 - num_inputs)
        self.ridge = np.repeat(np.asarray(ridge, dtype=np.float64), counts)
        self.memory, self.clip = memory, clip
        self.covariance = np.zeros((size, size))
        self.moments = np.zeros(size)
        self.bounds = np.array([np.inf, -np.inf])

    def predict(self, inputs: Float[np.ndarray, "N n"]) -> Float[np.ndarray, " N"]:
        """0 until something was fitted."""
        weights = np.linalg.solve(self.covariance + np.diag(self.ridge), self.moments)
        num_inputs = inputs.shape[1]
        constant, linear, rest = np.split(weights, [1, 1 + num_inputs])
        quadratic = np.zeros((num_inputs, num_inputs))
        quadratic[np.triu_indices(num_inputs)] = rest
        predicted = constant + inputs @ linear + ((inputs @ quadratic) * inputs).sum(1)
        low, high = self.bounds
        return np.clip(predicted, low, high) if self.clip and low <= high else predicted

    def fit(
        self,
        inputs: Float[np.ndarray, "N n"],
        targets: Float[np.ndarray, " N"],
        num_completions: int,
    ) -> None:
        """Take in the tokens of a batch; what was there before is worth e^(−B / memory)."""
        kept = math.exp(-num_completions / self.memory)
        self.covariance *= kept
        self.moments *= kept
        for block in _blocks(len(inputs)):
            x = products(inputs[block])
            self.covariance += x.T @ x
            self.moments += x.T @ targets[block]
        if len(targets):
            self.bounds[0] = min(self.bounds[0], targets.min())
            self.bounds[1] = max(self.bounds[1], targets.max())

    def state(self) -> dict[str, np.ndarray]:
        return {"covariance": self.covariance, "moments": self.moments, "bounds": self.bounds}


def _blocks(length: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, length, BLOCK)]


class Regression:
    """A value source: `Ridge` on any number of inputs side by side.

    It is always predicted before it is fitted: a value never saw its own completion's reward. Every
    process fits its own on the whole rollout batch. Between the two it keeps what it read, which
    takes longer than the fit, and must be fitted on just that.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[Inputs],
        ridge: tuple[float, float, float] = (1.0, 10.0, 100.0),
        memory: float = 256.0,
        clip: bool = True,
    ):
        self.name, self.inputs = name, list(inputs)
        self.fitted = Ridge(sum(each.width for each in self.inputs), ridge, memory, clip)
        self._predicted_from: tuple[np.ndarray, np.ndarray] | None = None  # token ids, inputs

    def read(self, rollouts: Rollouts) -> Float[np.ndarray, "B T n"]:
        """All inputs side by side."""
        return np.concatenate([each.read(rollouts) for each in self.inputs], axis=-1)

    def predict(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"] | None = None
    ) -> Float[np.ndarray, "B T"]:
        """Before every token; 0 on padding."""
        mask = rollouts.completion_mask
        inputs = self.read(rollouts)
        self._predicted_from = (rollouts.token_ids, inputs)
        token_values = np.zeros(mask.shape, dtype=np.float32)
        token_values[mask] = self.fitted.predict(inputs[mask])
        return token_values

    def fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> dict[str, float]:
        """Take in the masked tokens of a rollout batch; returns nothing to log."""
        kept, self._predicted_from = self._predicted_from, None
        known = kept is not None and kept[0] is rollouts.token_ids
        inputs = kept[1] if known else self.read(rollouts)
        self.fitted.fit(inputs[mask], targets[mask].astype(np.float64), len(rollouts))
        for each in self.inputs:
            each.observe(rollouts)
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """The sums, and what the inputs remember; writing into these arrays restores it."""
        held = self.fitted.state()
        for each in self.inputs:
            held |= {f"{each.name}.{key}": array for key, array in each.state().items()}
        return held
