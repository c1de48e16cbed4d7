"""A step number -> the prompts that this process completes.

Everything is computed from the step alone, so a resumed run needs no saved position.

Axes: P prompts of a step, b completions of this process.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from spo.config import SPOConfig
from spo.rows import ROW, own_rows, require_column

if TYPE_CHECKING:
    from datasets import Dataset


def prompt_order(
    num_prompts: int, epoch: int, seed: int, shuffle: bool = True
) -> Int[np.ndarray, " num_prompts"]:
    """The order of one epoch, a permutation that depends on (seed, epoch) only."""
    if not shuffle:
        return np.arange(num_prompts)
    return np.random.default_rng([seed, epoch]).permutation(num_prompts)


@dataclass(frozen=True)
class PromptBatches:
    """Which rows step t uses, computed from t alone, so a resumed run needs no saved position.

    Step t takes positions t·P … t·P + P − 1 of the endless concatenation of epoch orders: the last
    batch of an epoch is completed with the first rows of the next, and within an epoch every row
    comes exactly once. P may exceed `num_prompts`.

    >>> batches = PromptBatches(num_prompts=3, prompts_per_step=2, seed=0, shuffle=False)
    >>> [batches.indices(step).tolist() for step in range(3)]
    [[0, 1], [2, 0], [1, 2]]
    >>> batches.epoch(3)
    2.0
    """

    num_prompts: int
    prompts_per_step: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self):
        if min(self.num_prompts, self.prompts_per_step) < 1:
            raise ValueError(f"num_prompts and prompts_per_step must be at least 1: {self}.")

    def indices(self, step: int) -> Int[np.ndarray, " P"]:
        """The rows of `step` (0, 1, 2, …), in order."""
        positions = step * self.prompts_per_step + np.arange(self.prompts_per_step)
        epochs, offsets = np.divmod(positions, self.num_prompts)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            order = prompt_order(self.num_prompts, int(epoch), self.seed, self.shuffle)
            rows[epochs == epoch] = order[offsets[epochs == epoch]]
        return rows

    def epoch(self, step: int) -> float:
        """Passes over the data completed before `step`."""
        return step * self.prompts_per_step / self.num_prompts


@dataclass(frozen=True)
class PromptBatch:
    """The prompts that one process completes, one entry per completion.

    Attributes:
        step: the training step, or the number that stands for it in an evaluation.
        rows: place of each completion in the batch of all processes, (b,); seeds its sampling.
        index: row of the data set each prompt comes from, (b,).
        prompts: as the data set has them, text or chat messages.
        prompt_texts: what the model sees, chat template applied.
        prompt_ids: its tokens, ragged.
        columns: every other column of the data set, for the reward functions.
    """

    step: int
    rows: Int[np.ndarray, " b"]
    index: Int[np.ndarray, " b"]
    prompts: list[Any]
    prompt_texts: list[str]
    prompt_ids: list[list[int]]
    columns: dict[str, list]

    @classmethod
    def take(
        cls,
        dataset: "Dataset",
        step: int,
        rows: Int[np.ndarray, " b"],
        index: Int[np.ndarray, " b"],
    ) -> "PromptBatch":
        """The given rows (`index`) of a prepared data set."""
        columns = dataset.select(index).to_dict() | {ROW: index}
        return cls.of_columns(columns, step, rows)

    @classmethod
    def of_columns(
        cls, columns: dict[str, Any], step: int, rows: Int[np.ndarray, " b"]
    ) -> "PromptBatch":
        """Prepared rows, the numbers of which in the data set are column `ROW`."""
        columns = dict(columns)
        named = (columns.pop(n) for n in (ROW, "prompt", "prompt_text", "prompt_ids"))
        index, prompts, texts, ids = named
        return cls(step, rows, np.asarray(index), prompts, texts, ids, columns)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_chat(self) -> bool:
        """The prompts are lists of messages."""
        return not isinstance(self.prompts[0], str)


@dataclass(frozen=True)
class Prompts:
    """A prepared data set and who completes what: step number -> this process's `PromptBatch`.

    Each prompt is completed `num_generations` times, prompt-major; process r of n takes the r-th
    n-th of these rows.
    """

    dataset: "Dataset"
    batches: PromptBatches
    num_generations: int
    process_index: int = 0
    num_processes: int = 1

    @classmethod
    def plan(cls, dataset: "Dataset", args: SPOConfig, processes: Any) -> "Prompts":
        """As many prompts a step as the batch sizes give; `processes` is an Accelerator or what
        else has a process_index and num_processes."""
        for column in args.save_columns or []:
            require_column(dataset, column)
        num_processes, process_index = processes.num_processes, processes.process_index
        size = args.rollout_batch_size(num_processes) // args.num_generations
        seed = args.seed if args.data_seed is None else args.data_seed
        batches = PromptBatches(len(dataset), size, seed, args.shuffle_dataset)
        return cls(dataset, batches, args.num_generations, process_index, num_processes)

    def batch(self, step: int) -> PromptBatch:
        """The prompts of `step` (1, 2, …)."""
        index = np.repeat(self.batches.indices(step - 1), self.num_generations)
        rows = own_rows(len(index), self)
        return PromptBatch.take(self.dataset, step, rows, index[rows])

    def num_steps(self, max_steps: int, num_train_epochs: float) -> int:
        """`max_steps` where it is above 0, else as many as the epochs take, at least one."""
        prompts = int(self.batches.num_prompts * num_train_epochs)
        by_epochs = -(-prompts // self.batches.prompts_per_step)
        return max_steps if max_steps > 0 else max(by_epochs, 1)
