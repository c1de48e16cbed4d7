"""What a reward function may know of the run, and what it wants shown: TRL's contract."""

import copy
import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OF_ROWS = ("prompts", "completions", "completion_ids")
OF_RUN = ("trainer_state", "log_metric", "log_extra")
RESERVED = OF_ROWS + OF_RUN
"""What reward functions are given beside the columns of the data set, by name."""


@dataclass
class Logged:
    """What the reward functions of a batch asked to be shown.

    Attributes:
        metrics: every value logged, by name.
        columns: of the table of completions, one entry per row, by name.
    """

    metrics: dict[str, list[float]] = field(default_factory=dict)
    columns: dict[str, list] = field(default_factory=dict)

    def log_metric(self, name: str, value: Any) -> None:
        """A number that goes to metrics.jsonl and the trackers, averaged over all calls."""
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"log_metric({name!r}) got {value!r}, which is no finite number.")
        self.metrics.setdefault(str(name), []).append(float(value))

    def log_extra(self, column: str, values: Any) -> None:
        """A column of the table of completions: one entry per completion, in one call or in
        several that go on where the last one stopped."""
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        self.columns.setdefault(str(column), []).extend(values)

    def of_run(self, trainer_state: Any) -> dict[str, Any]:
        """What a function is handed; the state is a copy, which nobody but it will see changed."""
        state = copy.copy(trainer_state)
        if state is not None:
            state.log_history = [dict(entry) for entry in state.log_history]
        return dict(zip(OF_RUN, (state, self.log_metric, self.log_extra), strict=True))

    def of_other_length(self, num_rows: int) -> list[str]:
        """Columns that have not one entry for each row."""
        return [name for name, values in self.columns.items() if len(values) != num_rows]


def accepted(call: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """What of the offered arguments a function takes, by name or in its **columns."""
    try:
        parameters = inspect.signature(call).parameters
    except ValueError:  # one written in C
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return offered
    return {name: value for name, value in offered.items() if name in parameters}
