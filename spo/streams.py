"""Data sets that are read as they come: a step number -> the prompts that this process completes.

A stream has no length and no row by number. It is read in order, by every process alike; a resumed
run passes over what was read before.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from spo.config import SPOConfig
from spo.prompts import PromptBatch, Prompts
from spo.rows import is_stream, own_rows

SHUFFLED_ROWS = 1000
"""Rows in memory among which the next one is drawn."""


def shuffled(
    rows: Iterator[dict[str, Any]], random: np.random.Generator, size: int = SHUFFLED_ROWS
) -> Iterator[dict[str, Any]]:
    """Each row once, drawn from those in memory; the order depends on the generator alone."""
    held: list[dict[str, Any]] = []
    for row in rows:
        if len(held) < size:
            held.append(row)
            continue
        place = int(random.integers(size))
        yield held[place]
        held[place] = row
    yield from (held[i] for i in random.permutation(len(held)))


@dataclass
class StreamBatches:
    """How much of the stream a step takes, and how often it was read to its end."""

    prompts_per_step: int
    passes: int = 0

    def epoch(self, step: int) -> float:
        """Whole passes so far: how long one is nobody knows."""
        return float(self.passes)


class PromptStream:
    """`Prompts` of a stream: the same rows for a step whether the run was stopped before or not.

    Args:
        dataset: prepared by `spo.data.prepare_stream`.
        longest: tokens that a prompt may have beside a completion; longer ones are passed over.
    """

    def __init__(
        self, dataset: IterableDataset, args: SPOConfig, processes: Any, longest: int | None
    ):
        self.dataset, self.args, self.longest = dataset, args, longest
        self.process_index, self.num_processes = processes.process_index, processes.num_processes
        size = args.rollout_batch_size(self.num_processes) // args.num_generations
        self.batches = StreamBatches(size)
        self.rows, self.next_step = self._endless(), 1

    def batch(self, step: int) -> PromptBatch:
        """The prompts of `step` (1, 2, …)."""
        if step != self.next_step:  # resumed, or asked again
            self.batches.passes = 0
            self.rows = self._endless()
            for _ in range((step - 1) * self.batches.prompts_per_step):
                next(self.rows)
        taken = [next(self.rows) for _ in range(self.batches.prompts_per_step)]
        self.next_step = step + 1
        number = self.args.num_generations
        rows = own_rows(len(taken) * number, self)
        mine = [taken[i // number] for i in rows]
        columns = {name: [row[name] for row in mine] for name in mine[0]}
        return PromptBatch.of_columns(columns, step, rows)

    def num_steps(self, max_steps: int, num_train_epochs: float) -> int:
        """`max_steps`, which a stream needs."""
        return max_steps

    def _endless(self) -> Iterator[dict[str, Any]]:
        """The usable rows, pass after pass."""
        while True:
            found = 0
            rows = self._usable()
            if self.args.shuffle_dataset:
                random = np.random.default_rng([self.args.seed, self.batches.passes])
                rows = shuffled(rows, random)
            for row in rows:
                found += 1
                yield row
            if not found:
                raise ValueError(
                    "The stream holds no prompt that fits: raise max_prompt_length, or look at its "
                    "rows."
                )
            self.batches.passes += 1

    def _usable(self) -> Iterator[dict[str, Any]]:
        told = self.batches.passes > 0
        drops = self.args.overlong_prompts == "drop"
        for row in self.dataset:
            too_long = row.pop("_overlong") and drops
            if self.longest is not None and len(row["prompt_ids"]) > self.longest:
                too_long = True
            if not too_long:
                yield row
            elif not told:
                told = True
                warnings.warn(
                    f"The stream has prompts that are too long ({len(row['prompt_ids'])} tokens "
                    "for one); they are passed over.",
                    stacklevel=2,
                )


def plan_prompts(
    dataset: Dataset | IterableDataset, args: SPOConfig, processes: Any, positions: int | None
) -> Prompts | PromptStream:
    """Who completes what of a data set or a stream; `positions` are those that the model knows."""
    if not is_stream(dataset):
        return Prompts.plan(dataset, args, processes)
    longest = None if positions is None else positions - args.max_completion_length
    if longest is not None and longest < 1:
        raise ValueError(
            f"max_completion_length={args.max_completion_length} leaves no room for a prompt in "
            f"the {positions} positions that the model knows; lower it."
        )
    return PromptStream(dataset, args, processes, longest)
