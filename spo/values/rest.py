"""What is left of a reference solution, under the policy -> inputs that say how hard it is.

Where a completion has followed its reference so far, it still has to find the rest. How unlikely
that is under the policy is known from one pass over prompt and reference, or recorded already
where the reference is a sibling.

Axes: B completions, T completion tokens, S tokens of a reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

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
