"""A critic that is never wrong: values read off the text of a solution.

It knows the right solution, so nothing can be trained with it in earnest. It answers one question:
what would SPO's credit be worth if the values were right?
"""

import json
import random
import re
import sys
from dataclasses import replace
from itertools import accumulate

import numpy as np
from common import ROOT
from jaxtyping import Float

from spo import SPOTrainer
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


class ExactCriticTrainer(SPOTrainer):
    """V(s_t) is 0 after the first wrong character and, before it, the success rate of late to the
    power of the share of lines still to be written: as if every line were as hard as any other."""

    MEMORY = 0.9
    success_rate = 0.3

    def value(self, step: int, rollouts: Rollouts) -> Rollouts:
        rollouts = super().value(step, rollouts)
        values = self.exact_values(rollouts)
        right = (rollouts.completion_rewards >= 1).mean()
        self.success_rate = self.MEMORY * self.success_rate + (1 - self.MEMORY) * float(right)
        return replace(rollouts, token_values=values)

    def exact_values(self, rollouts: Rollouts) -> Float[np.ndarray, "B T"]:
        values = np.zeros(rollouts.completion_mask.shape, np.float32)
        problems = self.train_dataset.select(rollouts.prompt_index)
        for row, (task, entry) in enumerate(zip(problems["task"], problems["entry"], strict=True)):
            right = right_lines(task, json.loads(entry))
            ends, wrong_at = progress(right, rollouts.completions[row])
            starts = np.concatenate([[0], rollouts.token_ends[row, :-1]])  # ASCII up to there
            left = 1 - np.searchsorted(ends, starts, side="right") / len(right)
            lost = starts > (np.inf if wrong_at is None else wrong_at)
            values[row] = np.where(lost, 0.0, max(self.success_rate, 0.02) ** left)
        return np.where(rollouts.completion_mask, values, 0.0)
