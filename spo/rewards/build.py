"""SPOConfig -> the reward functions of a run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spo.config import SPOConfig
from spo.networks.loading import quantization_config
from spo.rewards.functions import RewardFunction, load_reward_functions
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


def build_rewards(
    reward_funcs: Any, processing_classes: Any, args: SPOConfig, device: torch.device
) -> list[RewardFunction]:
    """What a person gave as rewards, ready to be called; reward models are on the device."""
    funcs = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    return load_reward_functions(
        [by_name_of_trl(func) for func in funcs],
        processing_classes,
        reward_weights=args.reward_weights,
        max_completion_length=args.max_completion_length,
        device=device,
        quantization_config=quantization_config(args.reward_bits, compute_dtype=args.compute_dtype),
    )


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
