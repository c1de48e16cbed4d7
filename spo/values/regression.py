"""Inputs known before each token -> a value, by least squares in closed form. Pure numpy.

A value may read all that was fixed before the token was drawn: the path so far, a reference
solution, other completions of the prompt. Then it is a baseline, and the gradient stays unbiased.
An `Inputs` turns rollouts into such numbers; `Regression` is the value source fitted on them.

Axes: B completions, T completion tokens, N tokens of all rows laid end to end, n inputs, D = 1 + n
+ n(n + 1)/2 of their products.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.numpy import save_file

from spo.rollouts import Rollouts

FILE = "regression.safetensors"
"""In the folder of a critic network that a regression stands beside."""

CONSTANT = "constant"
"""The term of a regression that no input has a part in."""
FLOAT_MAX = np.finfo(np.float64).max
BLOCK = 8192
"""Tokens whose products are in memory at one time."""


@runtime_checkable
class Inputs(Protocol):
    """Numbers known before each token, of the order of 1, for a regression to read.

    Attributes:
        name: of what they are about.
        width: how many there are.
    """

    name: str
    width: int

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T n"]:
        """Anything on padding; element [b, t] must not depend on tokens ≥ t of row b. Segments
        may tell where to look, never what to say: whether t starts one is known only at t."""
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
        bounds: lowest and highest target seen; the first above the second before there is one.
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
        self.bounds = np.array([FLOAT_MAX, -FLOAT_MAX])

    def terms(self, inputs: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "N n+1"]:
        """What the constant and each input add to the prediction; 0 until something was fitted.

        A product of two inputs counts half for each. The constant's term also holds what clipping
        takes away.
        """
        weights = np.linalg.solve(self.covariance + np.diag(self.ridge), self.moments)
        num_inputs = inputs.shape[1]
        constant, linear, rest = np.split(weights, [1, 1 + num_inputs])
        quadratic = np.zeros((num_inputs, num_inputs))
        quadratic[np.triu_indices(num_inputs)] = rest
        found = np.empty((len(inputs), num_inputs + 1))
        found[:, 1:] = inputs * (linear + inputs @ ((quadratic + quadratic.T) / 2))
        found[:, 0] = constant
        low, high = self.bounds
        if self.clip and low <= high:
            predicted = found.sum(1)
            found[:, 0] += np.clip(predicted, low, high) - predicted
        return found

    def predict(self, inputs: Float[np.ndarray, "N n"]) -> Float[np.ndarray, " N"]:
        """The sum of all `terms`."""
        return self.terms(inputs).sum(1)

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
    """A value source: `Ridge` on any number of inputs side by side, in float64 on the CPU.

    It is always predicted before it is fitted: a value never saw its own completion's reward. Every
    process fits its own on the whole rollout batch. Between the two it keeps what it read, which
    takes longer than the fit, and must be fitted on just that.
    """

    name = "regression"

    def __init__(
        self,
        inputs: Sequence[Inputs],
        ridge: tuple[float, float, float] = (1.0, 10.0, 100.0),
        memory: float = 256.0,
        clip: bool = True,
    ):
        self.inputs = list(inputs)
        self.fitted = Ridge(sum(each.width for each in self.inputs), ridge, memory, clip)
        self._read: tuple[np.ndarray, np.ndarray] | None = None  # token ids, inputs

    def predict(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T"]:
        """Before every token; 0 on padding."""
        terms = self.terms(rollouts, segment_ids).values()
        return sum(terms, np.zeros(rollouts.completion_mask.shape, np.float32))

    def terms(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> dict[str, Float[np.ndarray, "B T"]]:
        """What each of the inputs adds to the value, by name, and the constant; 0 on padding."""
        mask = rollouts.completion_mask
        read = np.concatenate([i.read(rollouts, segment_ids) for i in self.inputs], axis=-1)
        self._read = (rollouts.token_ids, read)
        by_input = self.fitted.terms(read[mask])
        widths = (1, *(each.width for each in self.inputs))
        names = (CONSTANT, *(each.name for each in self.inputs))
        found = {name: np.zeros(mask.shape, dtype=np.float32) for name in names}
        parts = np.split(by_input, np.cumsum(widths)[:-1], axis=1)
        for name, part in zip(names, parts, strict=True):
            found[name][mask] = part.sum(1)
        return found

    def fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> dict[str, float]:
        """Take in the masked tokens of the rollout batch just predicted; returns nothing to log.

        Raises:
            ValueError: it was predicted on another batch, or on none.
        """
        if self._read is None or self._read[0] is not rollouts.token_ids:
            raise ValueError(f"The value source '{self.name}' must be predicted before it is fit.")
        inputs, self._read = self._read[1], None
        self.fitted.fit(inputs[mask], targets[mask].astype(np.float64), len(rollouts))
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """The sums; writing into these arrays restores it."""
        return self.fitted.state()

    def save(self, folder: Path) -> None:
        save_file(self.state(), folder / FILE, metadata={"inputs": self._described})

    def load(self, folder: Path) -> None:
        """Restore what `save` left in the folder, if anything; it serves the same inputs alone."""
        if not (folder / FILE).is_file():
            return
        with safe_open(folder / FILE, framework="numpy") as file:
            saved_of = (file.metadata() or {}).get("inputs", "")
            if saved_of != self._described:
                warnings.warn(
                    f"The regression in {folder} reads {saved_of}; this run's, which reads "
                    f"{self._described}, begins anew.",
                    stacklevel=2,
                )
                return
            for name, sums in self.state().items():
                sums[...] = file.get_tensor(name)

    @property
    def _described(self) -> str:
        return ", ".join(f"{each.name} ({each.width})" for each in self.inputs)
