"""What is left of a reference solution, under the policy -> inputs that say how hard it is.

Where a completion has followed its reference so far, it still has to find the rest. How unlikely
that is under the policy is known from one pass over prompt and reference, or recorded already
where the reference is a sibling.

Axes: B completions, T completion tokens, S tokens of a reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spo.rollouts import Rollouts
from spo.values.alignment import ItemKind
from spo.values.hint import Score
from spo.values.reference import align_rollouts

NUM_INPUTS = 3
MAX_SURPRISAL = 8.0
"""Nats, as in the inputs of the path."""


@dataclass(frozen=True)
class ScoredReference:
    """A reference solution under the policy, teacher-forced behind the prompt.

    Attributes:
        token_ends: end of each token in characters of the reference.
        token_logprobs, token_entropies: nats, at the sampling temperature.
    """

    token_ends: Int[np.ndarray, " S"]
    token_logprobs: Float[np.ndarray, " S"]
    token_entropies: Float[np.ndarray, " S"]


def rest_inputs(
    reference_read: Int[np.ndarray, "B T"], references: Sequence[ScoredReference | None]
) -> Float[np.ndarray, "B T 3"]:
    """Of the reference's tokens that end behind the part the completion has followed: the sum of
    their surprisal, each at most 8 nats, over 4; the sum of their entropy over 4; and their number
    over 20. 0 where the reference was not scored.

    >>> scored = ScoredReference(np.array([2, 3]), np.array([-1.0, -3.0]), np.array([0.0, 2.0]))
    >>> rest_inputs(np.array([[0, 2]]), [scored])
    array([[[1.  , 0.5 , 0.1 ],
            [0.75, 0.5 , 0.05]]])
    """
    found = np.zeros((*reference_read.shape, NUM_INPUTS))
    for row, scored in enumerate(references):
        if scored is None:
            continue
        surprisal = np.minimum(-scored.token_logprobs, MAX_SURPRISAL) / 4
        tokens = (surprisal, scored.token_entropies / 4, np.full(len(surprisal), 0.05))
        to_go = np.zeros((len(surprisal) + 1, NUM_INPUTS))
        to_go[:-1] = np.cumsum(np.stack(tokens, axis=-1)[::-1], axis=0)[::-1]
        passed = np.searchsorted(scored.token_ends, reference_read[row], side="right")
        found[row] = to_go[passed]
    return found


class RestInputs:
    """`rest_inputs`, by one kind of item.

    Args:
        score: given rollouts with references, each of these under the policy, None where there is
            none.
    """

    name = "rest"
    width = NUM_INPUTS

    def __init__(
        self, score: Callable[[Rollouts], list[ScoredReference | None]], items: ItemKind = "numbers"
    ):
        self.score, self.items = score, items

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T 3"]:
        read = align_rollouts(rollouts, self.items).reference_read
        return rest_inputs(read, self.score(rollouts))


def score_references(
    score: Score, processing_class: Any, rollouts: Rollouts
) -> list[ScoredReference | None]:
    """Each completion's reference under the policy, behind the prompt; a pass over every pair of
    prompt and reference, however many completions it has."""
    pairs: dict[tuple[int, str], int] = {}  # row of the data set, reference -> a row that has them
    for row, text in enumerate(rollouts.references):
        if text is not None:
            pairs.setdefault((int(rollouts.prompt_index[row]), text), row)
    texts = [text for _, text in pairs]
    if not texts:
        return [None] * len(rollouts)
    encoded = processing_class(texts, add_special_tokens=False, return_offsets_mapping=True)
    prompt_ids = [rollouts.prompt_ids[row] for row in pairs.values()]
    logprobs, entropies = score(prompt_ids, encoded["input_ids"])
    ends = [np.array([end for _, end in offsets]) for offsets in encoded["offset_mapping"]]
    found = {
        pair: ScoredReference(*columns)
        for pair, columns in zip(pairs, zip(ends, logprobs, entropies, strict=True), strict=True)
    }
    keys = zip(rollouts.prompt_index.tolist(), rollouts.references, strict=True)
    return [found.get(key) for key in keys]
