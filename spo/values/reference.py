"""A reference solution per completion -> inputs that compare the two before each token.

Axes: B completions, T completion tokens.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from spo.rollouts import Rollouts
from spo.values.alignment import NUM_INPUTS, Alignment, ItemKind, align


def align_rollouts(rollouts: Rollouts, items: ItemKind) -> Alignment:
    """`align` of each completion with its reference."""
    return align(
        rollouts.prompts,
        rollouts.completions,
        rollouts.references,
        rollouts.token_ends,
        rollouts.completion_mask,
        items,
    )


class ReferenceInputs:
    """`align` with the reference, several kinds of items side by side: of each the seven inputs and
    a flag of rows without a reference."""

    name = "reference"

    def __init__(self, items: Sequence[ItemKind] = ("numbers", "words")):
        self.items = list(items)
        self.width = (NUM_INPUTS + 1) * len(self.items)

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T n"]:
        columns = []
        for items in self.items:
            found = align_rollouts(rollouts, items)
            missing = found.missing[:, None, None] & rollouts.completion_mask[..., None]
            columns += [found.inputs, missing]
        return np.concatenate(columns, axis=-1, dtype=np.float64)
