"""Rewards by the names of TRL and open-r1 -> what stands for them here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spo.rewards.verifiers import format_reward

THINK_FORMAT = r"\A<think>((?!<think>).)*</think>(?!.*<think>)"
"""One thought, at the very beginning, and something behind it or not."""

TRL_REWARDS = {
    "accuracy_reward": "math_verify",
    "accuracy": "math_verify",
    "think_format_reward": "think_format_reward",
    "get_soft_overlong_punishment": "soft_overlong",
}
"""Rewards of TRL, also as trl.rewards.<name>, and of open-r1 -> what stands for them here."""


def by_name_of_trl(func: Any) -> Any:
    """A name as TRL or open-r1 have it becomes ours; a path its text; all else stays.

    >>> by_name_of_trl("trl.rewards.accuracy_reward"), by_name_of_trl("my_lib.rewards.short")
    ('math_verify', 'my_lib.rewards:short')
    """
    if isinstance(func, os.PathLike):
        return os.fspath(func)
    if not isinstance(func, str) or Path(func).exists():
        return func
    name = TRL_REWARDS.get(func.removeprefix("trl.rewards."))
    if name == "think_format_reward":
        return _think_format()
    if name is None and "." in func and not set(func) & set(":/\\"):
        return ":".join(func.rsplit(".", 1))
    return name or func


def _think_format() -> Callable:
    reward = format_reward(THINK_FORMAT)
    reward.__name__ = "think_format_reward"
    return reward
