"""SPOConfig -> the reward functions of a run."""

from typing import Any

import torch

from spo.config import SPOConfig
from spo.generation.toolbox import Toolbox
from spo.networks.loading import quantization_config
from spo.rewards.functions import RewardFunction, load_reward_functions
from spo.rewards.trl_names import by_name_of_trl


def build_rewards(
    reward_funcs: Any,
    processing_classes: Any,
    toolbox: Toolbox | None,
    args: SPOConfig,
    device: torch.device,
) -> list[RewardFunction]:
    """What a person gave as rewards, ready to be called, and behind them what environments say;
    reward models are on the device."""
    of_environments = toolbox.reward_functions() if toolbox else []
    if of_environments and not reward_funcs:
        return of_environments
    funcs = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    given = load_reward_functions(
        [by_name_of_trl(func) for func in funcs if func is not None],
        processing_classes,
        reward_weights=args.reward_weights,
        max_completion_length=args.max_completion_length,
        device=device,
        quantization_config=quantization_config(args.reward_bits, compute_dtype=args.compute_dtype),
    )
    return given + of_environments
