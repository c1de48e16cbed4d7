"""Rollouts -> values: the sum of value sources, each fitted to what the others leave.

A value may depend on the prompt, on the tokens before t, on anything fixed before the completion,
and on other completions of the same prompt; never on token t or later of its own completion. Then
E[∇log π(y_t | s_t) · V] = 0 and the policy gradient stays unbiased.

Axes: B completions, T completion tokens.
"""

from collections.abc import Sequence
from copy import copy
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spo.advantages import monte_carlo_returns
from spo.config import SPOConfig
from spo.errors import NonFiniteLossError
from spo.networks.network import Network
from spo.rollouts import Credit, Rollouts
from spo.values.coefficient import AutoLambda, value_coefficients
from spo.values.network import NetworkValue
from spo.values.prompt_memory import PromptMemory
from spo.values.references import References
from spo.values.regression import CONSTANT, Regression

COEFFICIENT = "coefficient"
"""The term that makes the sum of all others, times a measured factor, the value."""
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

    def state(self) -> dict[str, Tensor | np.ndarray]:
        """What a checkpoint has to hold; writing into these restores it."""


class Critic:
    """The value sources of a run; without any, advantages are group-relative.

    The sources form an additive model that is fitted by backfitting (Hastie & Tibshirani 1986):
    the target of each is the return less the values of all others.

    Args:
        sources: the terms of the value.
        args: of the run.
        references: where right solutions come from, None where no source reads any.
        memory: of earlier batches, None where nothing asks for it.
    """

    def __init__(
        self,
        sources: Sequence[ValueSource],
        args: SPOConfig,
        references: References | None = None,
        memory: PromptMemory | None = None,
    ):
        self.sources, self.args = tuple(sources), args
        self.references, self.memory = references, memory
        self.auto_lambda = AutoLambda() if args.lam == "auto" and self.sources else None

    @property
    def network(self) -> Network | None:
        """The trained network among the sources, or None."""
        networks = (s.learner.network for s in self.sources if isinstance(s, NetworkValue))
        return next(networks, None)

    @property
    def regression(self) -> Regression | None:
        """The one among the sources, or None."""
        return next((s for s in self.sources if isinstance(s, Regression)), None)

    @property
    def description(self) -> str:
        """For the model card."""
        names = [n for s in self.sources for n in _names_of(s) if n not in ("network", CONSTANT)]
        if self.network is not None:
            return "in `critic/`"
        return f"no network; it reads {', '.join(names)}" if names else "none (group-relative)"

    @property
    def settings(self) -> SPOConfig:
        """Those that the next batch's credit is assigned by: λ as the critic's record has it."""
        if self.auto_lambda is None:
            return self.args
        settings = copy(self.args)
        settings.lam = self.auto_lambda.lam
        return settings

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> tuple[Rollouts, dict[str, float]]:
        """The rollouts with the values of all tokens by source and the references they were made
        with, and the metrics of what was fitted on the way.

        Where a network's targets do not depend on its values, one pass gives both the values that
        credit is made of and the gradient; its step is taken here.
        """
        if not self.sources:
            return rollouts, {}
        if self.references is not None:
            rollouts = self.references.find(rollouts)
        values: Values = {}
        metrics: dict[str, float] = {}
        for source in self.sources:
            if isinstance(source, NetworkValue) and source.fits_while_reading:
                targets = monte_carlo_returns(rollouts, self.args) - _total(values, rollouts)
                mask = rollouts.loss_mask(self.args.mask_truncated_completions)
                values[source.name], metrics = source.predict_and_fit(rollouts, targets, mask)
            elif isinstance(source, Regression):
                values |= source.terms(rollouts, segment_ids)
            else:
                values[source.name] = source.predict(rollouts, segment_ids)
        bad = np.flatnonzero(~np.isfinite(_total(values, rollouts)).all(1))
        if len(bad):
            raise NonFiniteLossError(f"token_values of {len(bad)} completions is not finite", bad)
        if self.args.value_coefficient == "auto":
            metrics |= self._scale(values, rollouts, segment_ids)
        if self.auto_lambda is not None:
            metrics["spo/lam"] = self.auto_lambda.lam
        return rollouts.with_values(values), metrics

    def _scale(
        self, values: Values, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> dict[str, float]:
        """Add the term that scales the values of each prompt by its `value_coefficients`."""
        total = _total(values, rollouts)
        returns = monte_carlo_returns(rollouts, self.args)
        mask = rollouts.loss_mask(self.args.mask_truncated_completions)
        groups = rollouts.num_generations
        factors = value_coefficients(total, returns, segment_ids, mask, groups)
        values[COEFFICIENT] = (total * (factors - 1)[:, None]).astype(np.float32)
        return {"spo/value_coefficient": float(factors.mean())}

    def fit(self, rollouts: Rollouts, credit: Credit) -> dict[str, float]:
        """Fit every source that `read` has not fitted, and remember the batch; returns metrics."""
        if not self.sources:
            return {}
        metrics: dict[str, float] = {}
        mask = rollouts.loss_mask(self.args.mask_truncated_completions)
        for source in self.sources:
            if isinstance(source, NetworkValue) and source.fits_while_reading:
                continue
            own = (*_names_of(source), COEFFICIENT)
            others = {n: v for n, v in rollouts.values_by_source.items() if n not in own}
            metrics |= source.fit(rollouts, credit.token_returns - _total(others, rollouts), mask)
        if self.memory is not None:
            self.memory.remember(rollouts)
        if self.auto_lambda is not None:
            returns = monte_carlo_returns(rollouts, self.args)
            self.auto_lambda.observe(rollouts.token_values, returns, credit.segment_ids, mask)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint has to hold, by source; the tensors share the sources' memory."""
        remembered = {"memory": self.memory, "lambda": self.auto_lambda}
        holders = {source.name: source for source in self.sources} | remembered
        return {
            f"{name}.{key}": torch.as_tensor(held)
            for name, holder in holders.items()
            if holder is not None
            for key, held in holder.state().items()
        }


def _names_of(source: ValueSource) -> tuple[str, ...]:
    """What a source's terms are called among the values."""
    if isinstance(source, Regression):
        return (CONSTANT, *(inputs.name for inputs in source.inputs))
    return (source.name,)


def _total(values: Values, rollouts: Rollouts) -> Float[np.ndarray, "B T"]:
    return sum(values.values(), np.zeros(rollouts.completion_mask.shape, np.float32))
