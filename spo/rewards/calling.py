"""Reward functions called: each on copies of its own, async ones together, none for ever."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spo.calls import LoopEndedError, TimeIsUpError, deadline, settle
from spo.rewards.logged import RESERVED, accepted


class RewardError(RuntimeError):
    """A reward function raised, took too long, or returned what is no reward."""


@dataclass(frozen=True)
class RewardFunction:
    """A reward function under the name its metrics carry."""

    name: str
    call: Callable[..., Any]


def call_functions(
    functions: Sequence[RewardFunction],
    rows: dict[str, list],
    columns: dict[str, list],
    timeout: float | int | None = None,
    of_run: dict[str, Any] | None = None,
) -> list[Any]:
    """What each function returned; async ones wait together.

    `of_run`: what is handed, besides, to those that take it.

    Raises:
        RewardError: one raised, called sys.exit(), or took longer than `timeout` seconds.
    """
    if taken := {*RESERVED} & columns.keys():
        raise ValueError(f"Rename the dataset's columns {taken}: reward functions get others so.")
    outputs: list[Any] = []
    for function in functions:
        try:
            with deadline(timeout):
                more = accepted(function.call, of_run or {})
                outputs.append(function.call(**copied(rows), **copied(columns), **more))
        except (Exception, SystemExit) as error:
            for output in filter(inspect.iscoroutine, outputs):
                output.close()
            if isinstance(error, TimeIsUpError):
                raise _too_long([function], timeout) from None
            raise error if isinstance(error, RewardError) else _raised(function, error) from error
    waiting = [i for i, output in enumerate(outputs) if inspect.isawaitable(output)]
    if waiting:
        asked = [functions[i] for i in waiting]
        results = settle([outputs[i] for i in waiting], timeout)
        _check_settled(asked, results, timeout)
        for i, result in zip(waiting, results, strict=True):
            outputs[i] = result
    return outputs


def _check_settled(
    functions: list[RewardFunction], results: list[Any], timeout: float | int | None
) -> None:
    """Raise where an async function raised or did not end."""
    both = list(zip(functions, results, strict=True))
    if late := [function for function, result in both if isinstance(result, TimeIsUpError)]:
        raise _too_long(late, timeout)
    if lost := [function for function, result in both if isinstance(result, LoopEndedError)]:
        raise RewardError(
            f"Reward function {_names(lost)} ended the event loop: something it started stopped it "
            "or called sys.exit()."
        )
    for function, result in both:
        if isinstance(result, BaseException):
            raise _raised(function, result) from result


def copied(value: Any) -> Any:
    """Lists, dicts and arrays anew, all the way down: what a function changes is its own copy."""
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value


def _raised(function: RewardFunction, error: BaseException) -> RewardError:
    reason = (str(error).strip() or "no message").splitlines()[0]
    return RewardError(f"Reward function {function.name!r} raised {type(error).__name__}: {reason}")


def _too_long(functions: list[RewardFunction], timeout: float | int) -> RewardError:
    return RewardError(
        f"Reward function {_names(functions)} took longer than reward_timeout={timeout:g} seconds "
        "for a batch."
    )


def _names(functions: list[RewardFunction]) -> str:
    return ", ".join(repr(function.name) for function in functions)
