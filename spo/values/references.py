"""Rollouts -> the right solution of each prompt that the critic may read.

A reference is fixed before the completion is sampled, or independent of it: a column of the data
set, a right completion of the same prompt by a sibling in this batch, or an earlier one of that
prompt. It goes into values alone, never into the policy, the loss or an evaluation.

Axes: B completions in groups of G = `num_generations`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spo.rollouts import Rollouts
from spo.values.alignment import clean_reference
from spo.values.prompt_memory import PromptMemory

PEER = "peer"
MEMORY = "memory"


@dataclass(frozen=True)
class References:
    """Takes each completion's reference from the first of several origins that has one.

    Attributes:
        origins: names of data set columns, "peer" and "memory", in order of preference.
        right_reward: from which reward on a completion may serve as a reference.
        memory: where "memory" looks.
    """

    origins: Sequence[str]
    right_reward: float = 1.0
    memory: PromptMemory | None = None

    def find(self, rollouts: Rollouts) -> Rollouts:
        """The same with `references` and where each came from; None where there is none."""
        texts: list[str | None] = [None] * len(rollouts)
        found: list[str | None] = [None] * len(rollouts)
        for origin in self.origins:
            for row, text in enumerate(self._of_origin(origin, rollouts)):
                if texts[row] is None and text is not None:
                    texts[row], found[row] = text, origin
        return replace(rollouts, references=texts, reference_origins=found)

    def _of_origin(self, origin: str, rollouts: Rollouts) -> list[str | None]:
        if origin == PEER:
            rows = right_siblings(rollouts, self.right_reward)
            return [None if row is None else rollouts.completions[row] for row in rows]
        if origin == MEMORY:
            return self.memory.recall(rollouts.prompt_index)
        return [as_reference(entry) for entry in rollouts.columns[origin]]


def as_reference(entry: object) -> str | None:
    """An entry of a column as text, calculator notes removed; None where it is empty."""
    text = "" if entry is None else clean_reference(str(entry))
    return text if text.strip() else None


def right_siblings(rollouts: Rollouts, right_reward: float) -> list[int | None]:
    """For each completion the row of the best right one of its siblings: never its own.

    The best-rewarded of those with a reward ≥ `right_reward`; among equals the first. None where
    no sibling is right.
    """
    rewards = np.where(np.isnan(rollouts.completion_rewards), -np.inf, rollouts.completion_rewards)
    groups = rewards.reshape(-1, rollouts.num_generations)
    # (P, G, G): the rewards of the group as each of its members may see them
    seen = np.where(np.eye(rollouts.num_generations, dtype=bool), -np.inf, groups[:, None])
    first_rows = np.arange(len(groups))[:, None] * rollouts.num_generations
    best = (first_rows + seen.argmax(-1)).reshape(-1)
    right = (seen.max(-1) >= right_reward).reshape(-1)
    return [int(row) if is_right else None for row, is_right in zip(best, right, strict=True)]
