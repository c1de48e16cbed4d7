"""Completions → rewards: built-ins by name, functions by import path, reward models.

Input: B prompts and completions (text or chat messages), their token ids and the dataset's other
columns. Output: `CompletionRewards`, one reward per token, per completion and per function.

A reward function has TRL's interface, `f(prompts, completions, completion_ids, **columns)`, where
columns include `trainer_state`, `log_metric` and `log_extra`, and returns per row a number, None
(cannot be scored), or one number per completion token.
"""

import functools
import importlib
import importlib.util
import numbers
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.options import nearest_hint
from spo.rewards.calling import RewardError, RewardFunction, call_functions
from spo.rewards.logged import Logged
from spo.rewards.reward_model import RewardModel, load_reward_model
from spo.rewards.verifiers import BUILTIN_REWARDS

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class CompletionRewards:
    """The rewards of B completions of up to T tokens from F functions.

    Attributes:
        token_rewards: weighted sum over functions; a scalar reward stands on the last valid token.
        completion_rewards: the same per completion; NaN where unscorable.
        rewards_by_function: before weighting; dense ones summed; NaN where it returned None.
        scorable: False where every function returned None.
        logged: what the functions want shown.
    """

    token_rewards: Float[np.ndarray, "B T"]
    completion_rewards: Float[np.ndarray, " B"]
    rewards_by_function: Float[np.ndarray, "B F"]
    scorable: Bool[np.ndarray, " B"]
    logged: Logged


# --- names and objects → functions ----------------------------------------------------------------


def load_reward_functions(
    reward_funcs,
    reward_processing_classes=None,
    *,
    reward_weights=None,
    max_completion_length=None,
    device=None,
    quantization_config=None,
) -> list[RewardFunction]:
    """Resolve what a user may give as a reward.

    Args:
        reward_funcs: one or a list of: a built-in's name, `package.module:function`,
            `path/to/file.py:function`, a function, a reward model's folder or hub id or the model.
        reward_processing_classes: a reward model's tokenizer, or one entry for each reward (None
            for functions); None loads it from where its model came from.
        reward_weights: None, or one number for each.
        max_completion_length: what `soft_overlong` measures against, in tokens.
        device: where reward models are put.
        quantization_config: of reward models given by folder or hub id.

    Raises:
        ValueError: a name that cannot be resolved; one sentence says why.
    """
    funcs = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    if not funcs:
        raise ValueError(
            f"No reward given: name one of {', '.join(BUILTIN_REWARDS)}, or a function."
        )
    classes = reward_processing_classes
    classes = list(classes) if isinstance(classes, (list, tuple)) else [classes] * len(funcs)
    if len(classes) != len(funcs):
        raise ValueError(
            f"{len(classes)} reward_processing_classes do not fit {len(funcs)} reward_funcs: "
            "give one for each, None for functions."
        )
    if reward_weights is not None and len(reward_weights) != len(funcs):
        raise ValueError(
            f"reward_weights has {len(reward_weights)} entries for {len(funcs)} reward functions."
        )
    functions: list[RewardFunction] = []
    for func, processing_class in zip(funcs, classes, strict=True):
        call = _resolve(func, processing_class, max_completion_length, device, quantization_config)
        base = func if func in BUILTIN_REWARDS else _callable_name(call)
        taken = {function.name for function in functions}
        names = [base, *(f"{base}_{i}" for i in range(2, len(funcs) + 1))]
        functions.append(RewardFunction(next(n for n in names if n not in taken), call))
    return functions


def _resolve(
    func, processing_class, max_completion_length, device, quantization_config
) -> Callable:
    torch = sys.modules.get("torch")  # a module can only be given if torch is imported
    if torch is not None and isinstance(func, torch.nn.Module):
        stays = device is None or getattr(func, "is_quantized", False)
        return RewardModel(func if stays else func.to(device), processing_class)
    if callable(func):
        return func
    if not isinstance(func, str):
        raise ValueError(f"A reward is a name, a function or a model, not {func!r}.")
    if func in BUILTIN_REWARDS:
        return BUILTIN_REWARDS[func](max_completion_length)
    if ":" in func:
        return _import_function(func)
    if "/" in func or Path(func).exists():
        return load_reward_model(func, processing_class, device, quantization_config)
    raise ValueError(
        f"Unknown reward {func!r}{nearest_hint(func, BUILTIN_REWARDS)}; give one of "
        f"{', '.join(BUILTIN_REWARDS)}, package.module:function, or a reward model's folder or id."
    )


def _import_function(path: str) -> Callable:
    """`package.module:function` (also from the working folder) or `path/to/file.py:function`."""
    location, _, attribute = path.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if location.endswith(".py"):
            name = f"_reward_file_{Path(location).stem}"
            spec = importlib.util.spec_from_file_location(name, location)
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(location)
    except (ImportError, OSError) as error:
        raise ValueError(f"Cannot import the reward function {path!r}: {error}.") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        hint = nearest_hint(attribute, [n for n, value in vars(module).items() if callable(value)])
        raise ValueError(f"{location} has no reward function {attribute!r}{hint}.")
    return function


def _callable_name(call: Callable) -> str:
    call = call.func if isinstance(call, functools.partial) else call
    return getattr(call, "__name__", type(call).__name__)


# --- functions → rewards --------------------------------------------------------------------------


def score_completions(
    functions: Sequence[RewardFunction],
    weights: Sequence[float] | None,
    prompts: list,
    completions: list,
    completion_ids: list[list[int]],
    columns: dict[str, list],
    num_tokens: Sequence[int] | Int[np.ndarray, " B"],
    timeout: float | int | None = None,
    trainer_state: Any = None,
) -> CompletionRewards:
    """Call every function once on all B rows and add the rewards up.

    r[b, t] = Σ_f w_f r_f[b, t], where a scalar r_f[b] stands on the last of the row's `num_tokens`
    tokens. A None adds nothing. A completion of no token keeps its completion reward only.

    Raises:
        RewardError: a function raised, took more than `timeout` seconds, or returned something
            else than one finite number, None or list of numbers (one per token) for each row, or
            logged a column of another length.
        ValueError: not one finite weight for each function.
    """
    weights = [1.0] * len(functions) if weights is None else weights
    if len(weights) != len(functions) or not np.isfinite(weights).all():
        raise ValueError(
            f"reward_weights is {list(weights)}: give one finite number for each of the rewards "
            f"{[function.name for function in functions]}."
        )
    rows = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    logged = Logged()
    outputs = call_functions(functions, rows, columns, timeout, logged.of_run(trainer_state))
    if wrong := logged.of_other_length(len(completions)):
        raise RewardError(
            f"log_extra got {len(logged.columns[wrong[0]])} entries of column {wrong[0]!r} for "
            f"{len(completions)} completions: give one for each."
        )
    token_rewards = np.zeros((len(completions), max(num_tokens, default=0)))
    rewards_by_function = np.full((len(completions), len(functions)), np.nan)
    for f, (function, weight) in enumerate(zip(functions, weights, strict=True)):
        for row, reward in enumerate(_check_rewards(function.name, outputs[f], num_tokens)):
            rewards_by_function[row, f] = np.nan if reward is None else np.sum(reward)
            if reward is not None and num_tokens[row] > 0:
                first = 0 if isinstance(reward, list) else num_tokens[row] - 1
                token_rewards[row, first : num_tokens[row]] += weight * np.asarray(reward)

    scorable = ~np.isnan(rewards_by_function).all(axis=1)
    completion_rewards = np.nansum(rewards_by_function * np.asarray(weights), axis=1)
    completion_rewards[~scorable] = np.nan
    return CompletionRewards(
        token_rewards.astype(np.float32),
        completion_rewards.astype(np.float32),
        rewards_by_function.astype(np.float32),
        scorable,
        logged,
    )


def nothing_scored(function_names: Sequence[str], num_completions: int) -> RewardError:
    """The error for a data set of which no row can be scored."""
    names = ", ".join(map(repr, function_names))
    return RewardError(
        f"Reward function {names} returned None for all {num_completions} completions: check that "
        "the dataset has the columns and answers it reads."
    )


def _check_rewards(name: str, output: Any, num_tokens) -> list[float | list[float] | None]:
    """`output` as plain numbers, or an error that names the function and the row."""
    returned = f"Reward function {name!r} returned"
    output = output.tolist() if hasattr(output, "tolist") else output  # numpy or torch
    if not isinstance(output, (list, tuple)):
        raise RewardError(f"{returned} {type(output).__name__}, not a list of rewards.")
    if len(output) != len(num_tokens):
        raise RewardError(
            f"{returned} {len(output)} rewards for {len(num_tokens)} completions: return one each, "
            "None for a completion that cannot be scored."
        )
    rewards = []
    for row, reward in enumerate(output):
        reward = reward.tolist() if hasattr(reward, "tolist") else reward
        if isinstance(reward, (list, tuple)):
            if len(reward) != num_tokens[row]:
                raise RewardError(
                    f"{returned} {len(reward)} token rewards for row {row}, whose completion has "
                    f"{num_tokens[row]} tokens."
                )
            rewards.append([_check_number(returned, row, number) for number in reward])
        else:
            rewards.append(None if reward is None else _check_number(returned, row, reward))
    return rewards


def _check_number(returned: str, row: int, number: Any) -> float:
    number = number.item() if hasattr(number, "item") else number
    if not isinstance(number, numbers.Real):
        kind = type(number).__name__
        raise RewardError(
            f"{returned} {kind} for row {row}, not a number, None or list of numbers."
        )
    if not abs(number) <= FLOAT32_MAX:
        raise RewardError(
            f"{returned} {number} for row {row}: a reward is finite; return None for a completion "
            "that cannot be scored."
        )
    return float(number)
