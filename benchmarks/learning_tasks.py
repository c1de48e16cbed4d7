"""Tasks of benchmarks/learning.py: problems, how the base model of each is made, and the settings
that all modes share.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import ROOT
from critic_tasks import OPTIONS as CUBE_OPTIONS
from critic_tasks import SORTING_OPTIONS, flawless_solution, in_prose, next_words


@dataclass(frozen=True)
class Task:
    """A base model, the problems it trains on, and the settings that all modes share.

    Attributes:
        dataset, options: of reasoning-gym.
        base: arguments of the script that makes the base model.
        updates: of `settings`' batch; a mode with a larger one makes fewer, from as many samples.
        keep: which problems, given one's `entry`; None: all.
        num_problems: to train on, again and again; None: none of them twice.
        full_marks: what the verifier gives for a part of the answer is no reward.
    """

    dataset: str
    options: dict[str, int]
    base: str
    settings: dict[str, Any]
    updates: int
    eval_every: int = 20
    eval_size: int = 400
    folder: str | None = None
    lora_r: int | None = None
    threads: int = 1
    script: str = "scripts/make_quickstart_model.py"
    keep: Callable[[dict], bool] | None = None
    num_problems: int | None = None
    full_marks: bool = False

    @property
    def swept(self) -> bool:
        """Learning rates and clips were tried with tiny models; a language model keeps its own."""
        return self.lora_r is None

    @property
    def make_base(self) -> list[str]:
        """The command that writes the base model; its folder comes behind."""
        options = [f"{name}={value}" for name, value in self.options.items()]
        arguments = ["--task", self.dataset, "--task_options", *options, *self.base.split()]
        return [sys.executable, str(ROOT / self.script), *arguments]

    @property
    def base_folder(self) -> Path:
        return ROOT / (self.folder or f"runs/bases/{self.dataset}")

    def updates_of(self, batch_size: int) -> int:
        return self.updates * self.settings["per_device_train_batch_size"] // batch_size

    def eval_every_of(self, batch_size: int) -> int:
        """Updates; evaluations lie at the same numbers of samples for every batch size."""
        return self.eval_every * self.settings["per_device_train_batch_size"] // batch_size


TINY = {
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "learning_rate": 4e-4,
    "beta": 0.01,
    "adam_beta2": 0.99,
    "max_grad_norm": 0.1,
    "lr_scheduler_type": "constant",
}
"""The batch of one small card: 16 solutions an update. The bit of KL penalty keeps the base model's
most fragile skill, to know which number comes next: without it all modes, TRL's too, lose that now
and then and break down. Learning rate and clip are those of the first study; the tuned one looks
for each mode's own."""

CHAIN_SUM = Task(
    "chain_sum",
    {"min_terms": 8, "max_terms": 10, "min_digits": 1, "max_digits": 1},
    "--fillers 8 --wrong_step_fraction 0.12 --steps 3000",
    TINY | {"max_completion_length": 112},
    updates=120,
)
LEG_COUNTING = Task(
    "leg_counting",
    {"min_animals": 3, "max_animals": 5, "min_instances": 1, "max_instances": 9},
    "--fillers 8 --wrong_step_fraction 0.08 --steps 3000",
    TINY | {"max_completion_length": 144},
    updates=120,
)
CHAIN_SUM_HABIT = replace(
    CHAIN_SUM,
    base="--fillers 8 --wrong_step_fraction 0 --habit_fraction 0.6 --steps 3000",
    folder="runs/bases/chain_sum_habit",
)


def has_capitals(entry: dict) -> bool:
    """Somewhere the next word is another one than in a dictionary: the habit strikes."""
    metadata = entry["metadata"]
    left = set(metadata["sorted_words"])
    for word in metadata["sorted_words"]:
        if len(set(next_words(metadata, list(left)))) > 1:
            return True
        left.remove(word)
    return False


WORD_SORTING_HABIT = Task(
    "word_sorting",
    SORTING_OPTIONS,
    "--fillers 8 --wrong_step_fraction 0 --habit_fraction 0.7 --steps 3000",
    TINY | {"max_completion_length": 96},
    updates=120,
    folder="runs/bases/word_sorting_habit",
    script="benchmarks/critic_tasks.py",
    keep=has_capitals,
)
OF_TINY_MODELS = {
    "chain_sum": CHAIN_SUM,
    "leg_counting": LEG_COUNTING,
    "chain_sum_habit": CHAIN_SUM_HABIT,
    "leg_counting_habit": replace(
        LEG_COUNTING,
        base="--fillers 8 --wrong_step_fraction 0 --habit_fraction 0.7 --steps 3000",
        folder="runs/bases/leg_counting_habit",
    ),
}
"""Bases that slip now and then, so that whatever makes a policy surer of itself helps; and bases
with habits, mistakes that are the most likely step (see scripts/make_quickstart_model.py)."""


def borrows(entry: dict) -> int:
    """Steps of a sum at which a ten has to be borrowed: where the base's habit strikes.

    >>> borrows({"metadata": {"expression": "4 - 1 + 7 - 3 - 9"}})
    1
    """
    first, *rest = entry["metadata"]["expression"].split()
    total, found = int(first), 0
    for operator, term in zip(rest[::2], map(int, rest[1::2]), strict=True):
        found += operator == "-" and total % 10 < term % 10
        total += term if operator == "+" else -term
    return found


def is_hard(entry: dict) -> bool:
    """The habit leaves 0.4 to the power of 3 or 4 of its solutions right: 6 or 3 %."""
    return borrows(entry) in (3, 4)


TASKS = {
    **OF_TINY_MODELS,
    "chain_sum_habit_hard": replace(CHAIN_SUM_HABIT, keep=is_hard),
    "chain_sum_habit_160": replace(CHAIN_SUM_HABIT, num_problems=160),
    "color_cube_habit": Task(
        "color_cube_rotation",
        CUBE_OPTIONS,
        "--fillers 8 --wrong_step_fraction 0 --habit_fraction 0.6 --steps 3000",
        TINY | {"max_completion_length": 96},
        updates=120,
        folder="runs/bases/color_cube_habit",
        script="benchmarks/critic_tasks.py",
    ),
    "word_sorting_habit": WORD_SORTING_HABIT,
    "word_sorting_right": replace(
        WORD_SORTING_HABIT,
        settings=WORD_SORTING_HABIT.settings | {"reward_weights": [0.0, 1.0]},
        full_marks=True,
    ),
    "smollm2": Task(
        "chain_sum",
        {"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1},
        "--model models/SmolLM2-135M-Instruct --threads 2 --fillers 8 --wrong_step_fraction 0.12 "
        "--steps 100 --batch_size 16 --learning_rate 1e-4 --held_out 100",
        TINY | {"bf16": True, "learning_rate": 3e-4, "max_completion_length": 96},
        updates=40,
        eval_every=10,
        eval_size=200,
        folder="runs/bases/smollm2",
        lora_r=8,
    ),
    "smollm2_leg_counting": Task(
        "leg_counting",
        {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 9},
        "--model models/SmolLM2-135M-Instruct --fillers 0 --wrong_step_fraction 0 "
        "--steps 24 --batch_size 8 --learning_rate 2e-4 --held_out 64",
        TINY | {"bf16": True, "learning_rate": 3e-4, "beta": 0.0, "max_completion_length": 72},
        updates=16,
        eval_every=8,
        eval_size=128,
        folder="runs/bases/smollm2_leg_counting",
        lora_r=8,
    ),
    "smoke": Task(
        "chain_sum",
        {"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1},
        "",
        TINY | {"max_completion_length": 64},
        updates=2,
        eval_every=1,
        eval_size=16,
        folder="assets/quickstart",
    ),
}

MANY = 8
"""Problems drawn for one that is kept."""


def problems(task: Task, settings: dict[str, Any]):
    """Training problems with what a critic may read of each (columns `solution`, `prose` and
    `answer`), none of them twice unless the task says so, and held-out ones."""
    from spo.problems import load_reasoning_gym_splits

    size = settings["max_steps"] * settings["per_device_train_batch_size"]
    size = task.num_problems or size // settings["num_generations"]
    more = MANY if task.keep else 1
    options = task.options | {"size": more * size, "seed": 1}
    train, held_out = load_reasoning_gym_splits(task.dataset, options, more * task.eval_size)
    train, held_out = kept(train, task, size), kept(held_out, task, task.eval_size)
    return train.map(_columns), held_out


def kept(dataset, task: Task, size: int):
    """The first `size` problems that the task keeps."""
    if task.keep is None:
        return dataset
    rows = [i for i, entry in enumerate(dataset["entry"]) if task.keep(json.loads(entry))]
    if len(rows) < size:
        raise ValueError(f"Of {len(dataset)} problems {len(rows)} are kept, fewer than {size}.")
    return dataset.select(rows[:size])


def _columns(row: dict) -> dict[str, str]:
    solution = flawless_solution(row["task"], json.loads(row["entry"]))
    return {"solution": solution, "prose": in_prose(solution)}
