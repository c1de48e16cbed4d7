"""Reward functions and the data set's columns: do they fit, before anything is sampled?"""

import inspect

from spo.options import nearest_hint
from spo.rewards.calling import RewardFunction

ROWS = ("prompts", "completions", "completion_ids")
"""What every reward function gets beside the data set's columns."""

OF_RUN = ("trainer_state", "log_metric", "log_extra", "environments")
"""What one gets that asks for it."""

OURS = ("prompt", "prompt_text", "prompt_ids")
"""Columns of a prepared data set that no reward function gets."""


def check_columns(functions: list[RewardFunction], columns: list[str]) -> None:
    """Every function can be called with what there is, which else shows at its first call.

    Raises:
        ValueError: it asks for another column, or does not take those that there are.
    """
    columns = [name for name in columns if name not in OURS]
    given = {*ROWS, *columns}
    for function in functions:
        try:
            parameters = inspect.signature(function.call).parameters.values()
        except (TypeError, ValueError):  # some callables of C have none
            continue
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        needed = [p.name for p in by_name if p.default is p.empty]
        missing = [name for name in needed if name not in given and name not in OF_RUN]
        if missing:
            raise ValueError(
                f"Reward function {function.name!r} asks for the column {missing[0]!r}"
                f"{nearest_hint(missing[0], columns)}; the data set has {_listed(columns)}."
            )
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not takes_all and (left := sorted(given - {p.name for p in by_name})):
            raise ValueError(
                f"Reward function {function.name!r} does not take {_listed(left)}: write **columns "
                "behind its other arguments."
            )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no other column"
