"""Completions -> rewards, log-probs and entropies: the global rollout batch.

Axes: b rows of this process, B of all processes, T completion tokens.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from spo.columns import TOKEN_FLOATS
from spo.config import SPOConfig
from spo.errors import NonFiniteLossError
from spo.generation.text import completion_texts
from spo.mismatch import check_same_model
from spo.networks.batching import Sequences
from spo.networks.network import Network
from spo.networks.room import MicroBatchSize
from spo.prompts import PromptBatch
from spo.rewards.functions import (
    CompletionRewards,
    RewardFunction,
    nothing_scored,
    score_completions,
)
from spo.rewards.logged import Logged
from spo.rollouts import Completions, Rollouts, stack_rows
from spo.rows import own_rows

OF_PROMPT = ("prompt", "tools", "chat_template_kwargs", "environment")
"""Columns that a prompt is made of."""


@torch.no_grad()
def score(
    prompts: PromptBatch,
    completions: Completions,
    processing_class,
    reward_functions: list[RewardFunction],
    policy: Network,
    reference: Network | None,
    args: SPOConfig,
    trainer_state: Any = None,
) -> Rollouts:
    """What is known about this process's completions, gathered into the rollouts of all.

    Raises:
        ValueError: every completion is empty.
        EngineError: vLLM sampled from another model than the policy.
    """
    texts, ends = completion_texts(processing_class, completions.token_ids)
    rewards = reward(prompts, texts, completions, reward_functions, args, trainer_state)
    rows = records(prompts, completions, texts, ends, rewards, args)
    rows = with_columns(rows, token_columns(completions, policy, reference, args))
    rollouts = stack_rows(
        gather_object(list(map(packed, rows))),
        step=prompts.step,
        num_generations=args.num_generations,
        reward_names=[function.name for function in reward_functions],
    )
    if not rollouts.completion_mask.any():
        raise ValueError(
            f"Step {prompts.step}: every completion is empty; check the end token and the prompts."
        )
    check_same_model(rollouts, args)
    return replace(
        rollouts,
        logged_metrics=metrics_of_all([rewards.logged]),
        logged_columns=columns_of_all(rewards.logged, len(prompts)),
    )


def records(
    prompts: PromptBatch,
    completions: Completions,
    texts: list[str],
    token_ends: list[list[int]],
    rewards: CompletionRewards,
    args: SPOConfig,
) -> list[dict[str, Any]]:
    """What is known of each completion but what a network says of it, for `stack_rows`."""
    lengths = [len(ids) for ids in completions.token_ids]
    shown = prompts if completions.prompts is None else completions.prompts
    columns = {
        "prompt_index": prompts.index,
        "prompt": shown.prompt_texts,
        "completion": texts,
        "token_ends": token_ends,
        "token_rewards": [row[:n] for row, n in zip(rewards.token_rewards, lengths, strict=True)],
        "reward": rewards.completion_rewards,
        "rewards_by_function": rewards.rewards_by_function,
        "prompt_ids": completions.prompt_ids,
        "token_ids": completions.token_ids,
        "truncated": completions.truncated,
        "action_mask": completions.action_mask,
        "token_logprobs_sampler": completions.token_logprobs_sampler,
        "tool_calls": completions.tool_calls,
        "tool_failures": completions.tool_failures,
        "columns": _kept_columns(shown, args),
    }
    return with_columns([{} for _ in range(len(prompts))], columns)


PACKED = {"token_ids": np.int32, "token_ends": np.int32, "action_mask": np.bool_}
PACKED |= dict.fromkeys(TOKEN_FLOATS, np.float32)


def packed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with arrays in the place of lists of numbers: every process unpacks all records."""
    arrays = {name: np.asarray(record[name], PACKED[name]) for name in record.keys() & PACKED}
    return record | arrays


def with_columns(
    rows: list[dict[str, Any]], columns: dict[str, Iterable | None]
) -> list[dict[str, Any]]:
    """Records with further columns; a column that is None is none."""
    known = {name: column for name, column in columns.items() if column is not None}
    return [
        row | dict(zip(known, entries, strict=True))
        for row, entries in zip(rows, zip(*known.values(), strict=True), strict=True)
    ]


def _kept_columns(prompts: PromptBatch, args: SPOConfig) -> list[dict[str, Any]]:
    """Of each row what the critic may read of the data set, and what is saved of it."""
    sources = args.regression_sources
    if "monte_carlo" in sources:
        names = [*prompts.columns, "prompt"]
    else:
        reads_prompt = "hint" in sources or args.value_prompt == "reference"
        names = [*args.saved_columns, *args.reference_columns, *(OF_PROMPT if reads_prompt else ())]
    known = prompts.columns | {"prompt": prompts.prompts}
    names = [name for name in dict.fromkeys(names) if name in known]
    return [{name: known[name][row] for name in names} for row in range(len(prompts))]


def reward(
    prompts: PromptBatch,
    texts: list[str],
    completions: Completions,
    reward_functions: list[RewardFunction],
    args: SPOConfig,
    trainer_state: Any = None,
) -> CompletionRewards:
    """Call the reward functions on this process's rows."""
    shown = prompts if completions.prompts is None else completions.prompts
    answers = texts if completions.messages is None else completions.messages
    if shown.is_chat and completions.messages is None:
        answers = [[{"role": "assistant", "content": text}] for text in texts]
    weights = args.reward_weights
    if weights is not None:  # an environment's own reward has weight 1
        weights = [*weights, *[1.0] * (len(reward_functions) - len(weights))]
    return score_completions(
        reward_functions,
        weights,
        shown.prompts,
        answers,
        completions.token_ids,
        prompts.columns | completions.columns,
        np.array([len(ids) for ids in completions.token_ids]),
        args.reward_timeout,
        trainer_state,
    )


def metrics_of_all(batches: Sequence[Logged]) -> dict[str, float]:
    """The mean of each metric over these batches of all processes."""
    values: dict[str, list[float]] = {}
    for metrics in gather_object([batch.metrics for batch in batches]):
        for name, logged in metrics.items():
            values.setdefault(name, []).extend(logged)
    return {name: sum(values[name]) / len(values[name]) for name in sorted(values)}


def columns_of_all(logged: Logged, num_rows: int) -> dict[str, list]:
    """The columns of the rows of all processes; None where a process logged none of that name."""
    columns = logged.columns
    rows = gather_object([{name: columns[name][i] for name in columns} for i in range(num_rows)])
    names = sorted({name for row in rows for name in row})
    return {name: [row.get(name) for row in rows] for name in names}


def check_scored(rollouts: Rollouts, any_scored_before: bool) -> bool:
    """Whether any completion of the run has a reward yet. Raises where none has, and warns where a
    later batch has none: it teaches nothing."""
    if not np.isnan(rollouts.completion_rewards).all():
        return True
    if not any_scored_before:
        raise nothing_scored(rollouts.reward_names, len(rollouts))
    warnings.warn(f"Step {rollouts.step}: no completion could be scored.", stacklevel=2)
    return True


def check_finite(rollouts: Rollouts) -> None:
    """Stop before any credit is assigned where a network says NaN or infinity."""
    for name in ("token_entropies", "token_logprobs_old", "token_logprobs_ref", "token_values"):
        numbers = getattr(rollouts, name)
        rows = () if numbers is None else np.flatnonzero(~np.isfinite(numbers).all(1))
        if len(rows):
            raise NonFiniteLossError(f"{name} of {len(rows)} completions is not finite", rows)


def token_columns(
    completions: Completions, policy: Network, reference: Network | None, args: SPOConfig
) -> dict[str, list | None]:
    """What policy and reference say about every token, a ragged column each.

    Log-probs and entropies recorded while sampling are taken as they are, unless
    `rollout_logprobs` asks for a pass of their own.
    """
    share_prompts = args.share_prompts and policy.can_share_prompts
    sequences = Sequences(completions.prompt_ids, completions.token_ids, share_prompts)
    logprobs, entropies = completions.token_logprobs, completions.token_entropies
    if entropies is None or args.rollout_logprobs == "scoring":
        logprobs, entropies = score_rows(policy, "logprobs_and_entropies", sequences, args)
    logprobs_ref = None
    if reference is not None:
        logprobs_ref, _ = score_rows(reference, "logprobs_and_entropies", sequences, args)
    return {
        "token_logprobs_old": logprobs,
        "token_entropies": entropies,
        "token_logprobs_ref": logprobs_ref,
    }


@torch.no_grad()
def score_rows(
    network: Network,
    want: Literal["logprobs_and_entropies", "values"],
    sequences: Sequences,
    args: SPOConfig,
) -> tuple[list[np.ndarray], ...]:
    """One forward pass of a network over all rows, without gradient.

    Returns a ragged float32 column for each thing wanted, (length of the completion,) per row.
    """
    rows = np.flatnonzero(sequences.lengths)
    tokens = [args.max_tokens_per_micro_batch, network.max_scored_tokens]
    tokens = [number for number in tokens if number is not None]
    size = MicroBatchSize(args.per_device_train_batch_size, min(tokens, default=None))
    network.train(False)
    # inside, as sharded weights are gathered by all processes at once
    with network.active(), network.gathered(), network.autocast():
        while True:
            try:
                return _pass(network, want, sequences, rows, size)
            except torch.OutOfMemoryError:
                if not size.shrink(sequences.total_lengths[rows]):
                    raise
            network.max_scored_tokens = size.max_tokens  # for good
            torch.cuda.empty_cache()  # what failed is freed by now


def _pass(
    network: Network, want: str, sequences: Sequences, rows: np.ndarray, size: MicroBatchSize
) -> tuple[list[np.ndarray], ...]:
    columns = [
        [np.zeros(n, np.float32) for n in sequences.lengths]
        for _ in range(2 if want == "logprobs_and_entropies" else 1)
    ]
    for batch in sequences.micro_batches(rows, size.max_rows, size.max_tokens, network.device):
        output = network(batch, want)
        parts = output if isinstance(output, tuple) else (output,)
        for column, part in zip(columns, parts, strict=True):
            for row, numbers in zip(batch.rows, part.cpu().numpy(), strict=True):
                column[row] = numbers[: sequences.lengths[row]]
    return tuple(columns)


def score_shared(
    network: Network,
    want: Literal["logprobs_and_entropies", "values"],
    prompt_ids: list[list[int]],
    token_ids: list[list[int]],
    args: SPOConfig,
) -> tuple[list[np.ndarray], ...]:
    """`score_rows` of rows that every process has: each does its share, all get the whole."""
    mine = own_rows(len(token_ids), PartialState())
    sequences = Sequences(
        [prompt_ids[row] for row in mine],
        [token_ids[row] for row in mine],
        args.share_prompts and network.can_share_prompts,
    )
    columns = score_rows(network, want, sequences, args)
    return tuple(gather_object(column) for column in columns)
