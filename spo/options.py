"""Fields of a dataclass that are settings: their help, and whether they hold what they say.

Standard library only. `spo.config` and `train_spo.py` declare such dataclasses, `spo.cli` makes
flags of them. The module of one has its annotations as text (`from __future__ import annotations`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

TYPES = {
    "bool": bool,
    "int": numbers.Integral,
    "float": numbers.Real,
    "str": str,
    "list": list,
    "dict": dict,
}
"""What a field may hold, by how its annotation begins."""


def option(
    default: Any, help: str, group: str, *, low: float | None = None, high: float | None = None
) -> Any:
    """A dataclass field with its help text, the heading it stands under, and its bounds, both
    allowed values themselves."""
    metadata = {"help": help, "group": group, "low": low, "high": high}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_bounds(settings: Any) -> None:
    """Every number of a dataclass of options is finite and within its field's bounds.

    Raises:
        ValueError: one is not.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        low, high = field.metadata.get("low"), field.metadata.get("high")
        numbers_in = value if isinstance(value, list) else [value]
        for number in numbers_in:
            if not isinstance(number, numbers.Real) or isinstance(number, bool):
                continue
            if not math.isfinite(number):
                raise ValueError(f"{field.name}={number} must be a finite number.")
            if low is not None and high is not None and not low <= number <= high:
                raise ValueError(f"{field.name}={number} must lie in [{low}, {high}].")
            if low == 0 and number < 0:
                raise ValueError(f"{field.name}={number} must not be negative.")
            if low is not None and number < low:
                raise ValueError(f"{field.name}={number} must be at least {low}.")


def check_types(settings: Any) -> None:
    """Literal fields of a dataclass hold one of their values; other slips are mostly YAML's.

    Raises:
        ValueError: a field holds something else than its annotation says.
    """
    for name, choices in literal_choices(type(settings)).items():
        if getattr(settings, name) not in choices:
            allowed = ", ".join(str(choice) for choice in choices)
            raise ValueError(f"{name}={getattr(settings, name)!r} is not one of {allowed}.")
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), TYPES.get(re.match("[a-z]*", field.type)[0])
        if kind is None or isinstance(value, kind) or (value is None and "None" in field.type):
            continue
        if isinstance(value, str):
            hint = " (in YAML write 1.0e-5, not 1e-5)" if field.type.startswith("float") else ""
            raise ValueError(f"{field.name}={value!r} is text, not {field.type}{hint}.")
        raise ValueError(f"{field.name}={value!r} is not {field.type}.")


def literal_choices(cls: type) -> dict[str, tuple[str | None, ...]]:
    """The allowed values of every field annotated with Literal, None where that is one."""
    choices = {}
    for name, hint in get_type_hints(cls).items():
        for kind in (hint, *get_args(hint)):
            if get_origin(kind) is Literal:
                choices[name] = get_args(kind) + ((None,) if kind is not hint else ())
    return choices


def nearest_hint(name: str, candidates) -> str:
    """For an error sentence: the most similar valid name, or nothing.

    >>> nearest_hint("promt", ["answer", "prompt"])
    " (did you mean 'prompt'?)"
    """
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
