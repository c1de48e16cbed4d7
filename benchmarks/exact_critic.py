"""A critic that is never wrong: values read off the text of a solution.

It knows the right solution, so nothing can be trained with it in earnest. It answers one question:
what would SPO's credit be worth if the values were right?
"""

import json
import random
import re
import sys
from itertools import accumulate

import numpy as np
import torch
from common import ROOT
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spo.rollouts import Rollouts

sys.path.append(str(ROOT / "scripts"))

from make_quickstart_model import TASKS, Writer

OPENER = re.compile(r"[a-z]+ ")


def right_lines(task: str, entry: dict) -> list[str]:
    """The solution of someone who makes no mistakes, without words before the steps."""
    flawless = Writer(random.Random(0), wrong_step_fraction=0.0, fillers=0)
    return TASKS[task].write(entry, flawless).split("\n")


def progress(right: list[str], solution: str) -> tuple[list[int], int | None]:
    """Where each right line of a solution ends, up to the first wrong character, and where that
    stands; None if there is none.

    >>> progress(["4-1=3", "3+7=10"], "4-1=3\\nso 3+7=12")
    ([5], 14)
    """
    ends, at = [], 0
    for line, wanted in zip(solution.split("\n"), right, strict=False):
        opener = OPENER.match(line)
        begin = opener.end() if opener else 0
        given = line[begin:]
        if given != wanted:
            agreeing = accumulate((a == b for a, b in zip(given, wanted, strict=False)), min)
            return ends, at + begin + sum(agreeing)
        at += len(line)
        ends.append(at)
        at += 1
    wrong_length = solution.count("\n") + 1 != len(right)
    return ends, at - 1 if wrong_length else None


class ConstantValue:
    """No critic: all values are one number, and nothing is fitted."""

    name = "constant"

    def __init__(self, value: float = 0.0):
        self.value = value

    def predict(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T"]:
        return np.where(rollouts.completion_mask, np.float32(self.value), np.float32(0))

    def fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {}


class ExactValue:
    """V(s_t) is 0 after the first wrong character and, before it, the success rate of late to the
    power of the share of lines still to be written: as if every line were as hard as any other. A
    line is written when its line break is: before that a wrong character may follow.

    Attributes:
        success_rate: of the last ten rollout batches or so, ().
    """

    name = "exact"
    MEMORY = 0.9

    def __init__(self, train_dataset: Dataset):
        self.train_dataset = train_dataset
        self.success_rate = torch.tensor(0.3, dtype=torch.float64)

    def predict(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T"]:
        """Of the text before each token; 0 on padding."""
        values = np.zeros(rollouts.completion_mask.shape, np.float32)
        success_rate = max(self.success_rate.item(), 0.02)
        problems = self.train_dataset.select(rollouts.prompt_index)
        for row, (task, entry) in enumerate(zip(problems["task"], problems["entry"], strict=True)):
            right = right_lines(task, json.loads(entry))
            ends, wrong_at = progress(right, rollouts.completions[row])
            starts = np.concatenate([[0], rollouts.token_ends[row, :-1]])  # ASCII up to there
            left = 1 - np.searchsorted(ends, starts, side="left") / len(right)
            lost = starts > (np.inf if wrong_at is None else wrong_at)
            values[row] = np.where(lost, 0.0, success_rate**left)
        return np.where(rollouts.completion_mask, values, 0.0)

    def fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> dict[str, float]:
        """The success rate alone is not known beforehand."""
        right = (rollouts.completion_rewards >= 1).mean()
        self.success_rate.mul_(self.MEMORY).add_((1 - self.MEMORY) * float(right))
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold; writing into this tensor restores it."""
        return {"success_rate": self.success_rate}
