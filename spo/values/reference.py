"""A reference solution per completion -> inputs that compare the two before each token.

The reference is fixed before the completion is sampled: a column of the data set, a right
completion of the same prompt by a sibling in this batch, or an earlier one of that prompt. It goes
into values alone, never into the policy, the loss or an evaluation.

Axes: B completions, T completion tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from spo.rollouts import Rollouts
from spo.values import rest
from spo.values.alignment import NUM_INPUTS, ItemKind, align, clean_reference
from spo.values.prompt_memory import PromptMemory
from spo.values.rest import ScoredReference, rest_inputs

PEER = "peer"
MEMORY = "memory"
RIGHT_REWARD = 1.0
"""The completion reward from which a completion counts as right, and may serve as a reference."""


def column_references(rollouts: Rollouts, column: str) -> list[str | None]:
    """A data set column as references, calculator notes removed; None where it is empty.

    Raises:
        ValueError: there is no such column.
    """
    if column not in rollouts.columns:
        known = ", ".join(sorted(rollouts.columns)) or "none"
        raise ValueError(
            f"value_reference names the column '{column}', which the data set does not have; its "
            f"columns are: {known}."
        )
    texts = ["" if x is None else clean_reference(str(x)) for x in rollouts.columns[column]]
    return [text if text.strip() else None for text in texts]


def peer_references(
    rollouts: Rollouts, right_reward: float = RIGHT_REWARD
) -> tuple[list[str | None], list[int | None]]:
    """For each completion the best right one of its siblings, and its row: never its own.

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
    rows = [int(row) if is_right else None for row, is_right in zip(best, right, strict=True)]
    return [None if row is None else rollouts.completions[row] for row in rows], rows


class ReferenceInputs:
    """`align` with a reference from the first of several origins that has one for the row.

    Args:
        origins: names of data set columns, "peer" and "memory", in order of preference.
        items: what is compared; several kinds stand side by side.
        memory: where "memory" looks.
        score: given the rollouts and a reference or None for each, scores the references under the
            policy; with it, what is left of a reference is an input as well (`rest_inputs`, by the
            first kind of item).
        right_reward: from which reward on a completion serves as a reference.
    """

    name = "reference"

    def __init__(
        self,
        origins: Sequence[str],
        items: Sequence[ItemKind] = ("numbers", "words"),
        memory: PromptMemory | None = None,
        score: Callable[[Rollouts, list[str | None]], list[ScoredReference | None]] | None = None,
        right_reward: float = RIGHT_REWARD,
    ):
        if not origins:
            raise ValueError("value_reference names no origin: a column, 'peer' or 'memory'.")
        if MEMORY in origins and memory is None:
            raise ValueError("value_reference 'memory' needs a PromptMemory.")
        self.origins, self.items = list(origins), list(items)
        self.memory, self.score, self.right_reward = memory, score, right_reward
        self.width = (NUM_INPUTS + 1) * len(self.items) + (rest.NUM_INPUTS if score else 0)

    def references(self, rollouts: Rollouts) -> tuple[list[str | None], list[str | None]]:
        """The reference of each completion and where it came from; None where there is none."""
        texts: list[str | None] = [None] * len(rollouts)
        found: list[str | None] = [None] * len(rollouts)
        for origin in self.origins:
            for row, text in enumerate(self._of_origin(origin, rollouts)):
                if texts[row] is None and text is not None:
                    texts[row], found[row] = text, origin
        return texts, found

    def _of_origin(self, origin: str, rollouts: Rollouts) -> list[str | None]:
        if origin == PEER:
            if rollouts.num_generations < 2:
                raise ValueError(
                    "value_reference 'peer' needs num_generations of at least 2: with one "
                    "completion a prompt there is no sibling."
                )
            return peer_references(rollouts, self.right_reward)[0]
        if origin == MEMORY:
            return self.memory.recall(rollouts.prompt_index)
        return column_references(rollouts, origin)

    def read(self, rollouts: Rollouts) -> Float[np.ndarray, "B T n"]:
        """By kind of item the seven inputs of `align` and a flag of rows without a reference; then
        the rest, where it is scored."""
        texts, _ = self.references(rollouts)
        found = [
            align(
                rollouts.prompts,
                rollouts.completions,
                texts,
                rollouts.token_ends,
                rollouts.completion_mask,
                kind,
            )
            for kind in self.items
        ]
        columns = []
        for alignment in found:
            missing = alignment.missing[:, None, None] & rollouts.completion_mask[..., None]
            columns += [alignment.inputs, missing]
        if self.score:
            columns.append(rest_inputs(found[0].reference_read, self.score(rollouts, texts)))
        return np.concatenate(columns, axis=-1, dtype=np.float64)

    def observe(self, rollouts: Rollouts) -> None:
        """Remember right completions."""
        if self.memory is not None:
            self.memory.remember(rollouts, self.right_reward)

    def state(self) -> dict[str, np.ndarray]:
        return {} if self.memory is None else self.memory.state()
