"""The latest right completion of each prompt, and how often the prompt was solved, in arrays.

Bounded: a prompt has the slot of its data set row, modulo the number of slots, and a newer prompt
takes over a slot that it shares with an older one. Texts longer than a slot are not kept.
"""

import numpy as np
from jaxtyping import Float, Int

from spo.rollouts import Rollouts

EMPTY = -1


class PromptMemory:
    """What earlier batches showed of each prompt.

    Args:
        right_reward: from which reward on a completion is right.
        num_slots: prompts remembered; the data set's size is enough.
        num_bytes: UTF-8 bytes of the longest text kept.

    Attributes:
        owners: data set row whose slot it is, −1: nobody's.
        lengths, texts: bytes of the latest right completion; length −1: none yet.
        tries, successes: scored completions of the prompt so far, and right ones.
    """

    def __init__(self, right_reward: float, num_slots: int = 4096, num_bytes: int = 4096):
        self.right_reward = right_reward
        self.owners = np.full(num_slots, EMPTY, dtype=np.int64)
        self.lengths = np.full(num_slots, EMPTY, dtype=np.int64)
        self.texts = np.zeros((num_slots, num_bytes), dtype=np.uint8)
        self.tries = np.zeros(num_slots, dtype=np.int64)
        self.successes = np.zeros(num_slots, dtype=np.int64)

    def recall(self, prompt_index: Int[np.ndarray, " B"]) -> list[str | None]:
        """The latest right completion of each prompt; None where there is none."""
        slots = prompt_index % len(self.owners)
        known = (self.owners[slots] == prompt_index) & (self.lengths[slots] >= 0)
        return [
            self.texts[slot, : self.lengths[slot]].tobytes().decode() if is_known else None
            for slot, is_known in zip(slots, known, strict=True)
        ]

    def record(self, prompt_index: Int[np.ndarray, " B"]) -> tuple[np.ndarray, np.ndarray]:
        """Completions of each prompt scored so far and right ones among them, (B,) each."""
        slots = prompt_index % len(self.owners)
        known = self.owners[slots] == prompt_index
        return np.where(known, self.tries[slots], 0), np.where(known, self.successes[slots], 0)

    def remember(self, rollouts: Rollouts) -> None:
        """Take in a batch; of several right completions of a prompt the last is kept."""
        for row in np.flatnonzero(~np.isnan(rollouts.completion_rewards)):
            index = int(rollouts.prompt_index[row])
            slot = index % len(self.owners)
            if self.owners[slot] != index:
                self.owners[slot], self.lengths[slot] = index, EMPTY
                self.tries[slot] = self.successes[slot] = 0
            self.tries[slot] += 1
            if rollouts.completion_rewards[row] >= self.right_reward:
                self.successes[slot] += 1
                self._keep(slot, rollouts.completions[row].encode())

    def _keep(self, slot: int, text: bytes) -> None:
        if len(text) <= self.texts.shape[1]:
            self.lengths[slot] = len(text)
            self.texts[slot, : len(text)] = np.frombuffer(text, dtype=np.uint8)

    def state(self) -> dict[str, np.ndarray]:
        names = ("owners", "lengths", "texts", "tries", "successes")
        return {name: getattr(self, name) for name in names}


class HistoryInputs:
    """How often the prompt was solved before: the share of right completions among those scored,
    and how sure that is, n / (n + 1) after n."""

    name = "history"
    width = 2

    def __init__(self, memory: PromptMemory):
        self.memory = memory

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T 2"]:
        tries, successes = self.memory.record(rollouts.prompt_index)
        per_row = np.stack([successes / np.maximum(tries, 1), tries / (tries + 1)], axis=-1)
        return np.where(rollouts.completion_mask[..., None], per_row[:, None], 0.0)
