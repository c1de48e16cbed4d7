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
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
    default: Any,
    help: str,
    group: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field with its help text, the heading it stands under, and the bounds of its
    numbers: at least `low`, or more than `above`; at most `high`."""
    metadata = {"help": help, "group": group, "low": low, "above": above, "high": high}
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
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, numbers.Real) and not isinstance(number, bool):
                _check_number(field, number)


def _check_number(field: dataclasses.Field, number: float) -> None:
    low, above, high = (field.metadata[name] for name in ("low", "above", "high"))
    inside = (
        (low is None or number >= low)
        and (above is None or number > above)
        and (high is None or number <= high)
    )
    if inside and math.isfinite(number):
        return
    if high is not None:
        bounds = f"lie in ({above}, {high}]" if low is None else f"lie in [{low}, {high}]"
    elif above is not None:
        bounds = f"be above {above}"
    elif low == 0 and number < 0:
        bounds = "not be negative"
    elif low is not None and number < low:
        bounds = f"be at least {low}"
    else:
        bounds = "be a finite number"
    raise ValueError(f"{field.name}={number} must {bounds}.")


def check_types(settings: Any) -> None:
    """Literal fields of a dataclass hold one of their values; other slips are mostly YAML's.

    Raises:
        ValueError: a field holds something else than its annotation says.
    """
    for name, choices in literal_choices(type(settings)).items():
        held = getattr(settings, name)
        for value in held if isinstance(held, list) else [held]:
            if value not in choices:
                allowed = ", ".join(str(choice) for choice in choices)
                raise ValueError(f"{name}={value!r} is not one of {allowed}.")
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), TYPES.get(re.match("[a-z]*", field.type)[0])
        if isinstance(value, str) and f"Literal['{value}']" in field.type:
            continue  # a word that stands for a number
        if kind is None or isinstance(value, kind) or (value is None and "None" in field.type):
            continue
        if isinstance(value, str):
            hint = " (in YAML write 1.0e-5, not 1e-5)" if field.type.startswith("float") else ""
            raise ValueError(f"{field.name}={value!r} is text, not {field.type}{hint}.")
        raise ValueError(f"{field.name}={value!r} is not {field.type}.")


def literal_choices(cls: type) -> dict[str, tuple[str | None, ...]]:
    """The allowed values of every field annotated with Literal or a list of it, None where that is
    one; not of those that hold a number or a word."""
    choices = {}
    for name, hint in get_type_hints(cls).items():
        kinds = {None if kind is type(None) else kind for kind in alternatives(hint)}
        lists = {get_args(kind)[0] for kind in kinds if get_origin(kind) is list}
        words = [kind for kind in kinds | lists if get_origin(kind) is Literal]
        if words and not kinds & {int, float}:
            choices[name] = get_args(words[0]) + ((None,) if None in kinds else ())
    return choices


def alternatives(hint: Any) -> tuple[Any, ...]:
    """What a field may hold: the members of a union, or the annotation itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def nearest_hint(name: str, candidates) -> str:
    """For an error sentence: the most similar valid name, or nothing.

    >>> nearest_hint("promt", ["answer", "prompt"])
    " (did you mean 'prompt'?)"
    """
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
