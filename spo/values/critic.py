"""Rollouts -> values: the sum of value sources, each fitted to what the others leave.

A value may depend on the prompt, on the tokens before t, on anything fixed before the completion,
and on other completions of the same prompt; never on token t or later of its own completion. Then
E[∇log π(y_t | s_t) · V] = 0 and the policy gradient stays unbiased.

Axes: B completions, T completion tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spo.advantages import monte_carlo_returns
from spo.config import SPOConfig
from spo.errors import NonFiniteLossError
from spo.learner import build_learner
from spo.networks.network import Network
from spo.rollouts import Rollouts
from spo.values.network import NetworkValue
from spo.values.path import PathValue

Values = dict[str, Float[np.ndarray, "B T"]]
"""By the name of their source."""


@runtime_checkable
class ValueSource(Protocol):
    """One term of the critic.

    Attributes:
        name: what its values and metrics are called.
    """

    name: str

    def predict(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T"]:
        """V(s_t) before every token, from what was fitted so far."""

    def fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> dict[str, float]:
        """Learn from the masked tokens of one rollout batch; returns metrics."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold; writing into these tensors restores it."""


class Critic:
    """The value sources of a run; without any, advantages are group-relative.

    The sources form an additive model that is fitted by backfitting (Hastie & Tibshirani 1986):
    the target of each is the return less the values of all others.
    """

    def __init__(self, sources: Sequence[ValueSource], args: SPOConfig):
        self.sources, self.args = tuple(sources), args

    @property
    def network(self) -> Network | None:
        """The trained network among the sources, or None."""
        networks = (s.learner.network for s in self.sources if isinstance(s, NetworkValue))
        return next(networks, None)

    @property
    def path(self) -> PathValue | None:
        """The regression on the path's features among the sources, or None."""
        return next((s for s in self.sources if isinstance(s, PathValue)), None)

    @property
    def description(self) -> str:
        """For the model card."""
        if self.network is not None:
            return "in `critic/`"
        return "the path's features alone" if self.sources else "none (group-relative advantages)"

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> tuple[Values, dict[str, float]]:
        """The values of all tokens by source, and the metrics of what was fitted on the way.

        Where a network's targets do not depend on its values, one pass gives both the values that
        credit is made of and the gradient; its step is taken here.
        """
        values: Values = {}
        metrics: dict[str, float] = {}
        for source in self.sources:
            if isinstance(source, NetworkValue) and source.fits_while_reading:
                targets = monte_carlo_returns(rollouts, self.args) - _total(values, rollouts)
                mask = rollouts.loss_mask(self.args.mask_truncated_completions)
                read, metrics = source.predict_and_fit(rollouts, targets, mask)
            else:
                read = source.predict(rollouts, segment_ids)
            bad = np.flatnonzero(~np.isfinite(read).all(1))
            if len(bad):
                raise NonFiniteLossError(
                    f"token_values of {len(bad)} completions is not finite", bad
                )
            values[source.name] = read
        return values, metrics

    def fit(self, rollouts: Rollouts, token_returns: Float[np.ndarray, "B T"]) -> dict[str, float]:
        """Fit every source that `read` has not fitted; returns their metrics."""
        metrics: dict[str, float] = {}
        mask = rollouts.loss_mask(self.args.mask_truncated_completions)
        for source in self.sources:
            if isinstance(source, NetworkValue) and source.fits_while_reading:
                continue
            others = {n: v for n, v in rollouts.values_by_source.items() if n != source.name}
            metrics |= source.fit(rollouts, token_returns - _total(others, rollouts), mask)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint has to hold, by source."""
        return {
            f"{source.name}.{name}": tensor
            for source in self.sources
            for name, tensor in source.state().items()
        }


def _total(values: Values, rollouts: Rollouts) -> Float[np.ndarray, "B T"]:
    return sum(values.values(), np.zeros(rollouts.completion_mask.shape, np.float32))


def build_critic(
    network: Network | None,
    value_model: Any,
    accelerator: Accelerator,
    args: SPOConfig,
    num_updates: int,
) -> Critic:
    """The sources that `args` ask for; a critic folder named by `value_model` gives back the sums
    of its regression."""
    sources: list[ValueSource] = []
    if args.wants_path_value(has_value_network=network is not None):
        path = PathValue()
        if isinstance(value_model, str):
            path.load(Path(value_model))
        sources.append(path)
    if network is not None:
        learner = build_learner(network, "values", accelerator, args, num_updates)
        sources.append(NetworkValue(learner, args))
    return Critic(sources, args)
