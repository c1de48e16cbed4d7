"""What the path to each token cost under the rollout policy, as inputs of a regression.

An unlikely token is often where an answer went wrong, and a critic that reads hidden states alone
hardly sees it: a state says what the text is, not how unlikely the policy found it. The numbers
exist anyway. All of them are functions of the state before the token, so a value built on them
stays a baseline and the policy gradient stays unbiased.

Axes: B completions, T completion tokens.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.rollouts import Rollouts
from spo.values.regression import Regression

NUM_FEATURES = 8
MAX_SURPRISAL = 8.0
"""Nats. Without a bound one token the policy has drifted away from throws the values off."""


def surprisal_features(
    token_logprobs: Float[np.ndarray, "B T"],
    token_entropies: Float[np.ndarray, "B T"],
    completion_mask: Bool[np.ndarray, "B T"],
) -> Float[np.ndarray, "B T 8"]:
    """Before token t, in units of 2 nats: the surprisal of token t−1, the largest one of tokens
    < t, and log(1 + their sum); the same of the surprisal beyond the entropy of its choice, which
    tells a slip from a free choice; the entropy at t; and log(1 + t), also halved.

    >>> features = surprisal_features(
    ...     np.array([[-4.0, -2.0]]), np.array([[2.0, 0.0]]), np.ones((1, 2), bool))
    >>> features.round(2)
    array([[[0.  , 0.  , 0.  , 0.  , 0.  , 0.  , 1.  , 0.  ],
            [2.  , 2.  , 0.8 , 1.  , 1.  , 0.55, 0.  , 0.35]]])
    """
    surprisal = np.clip(-token_logprobs, 0.0, MAX_SURPRISAL)
    entropy = np.clip(token_entropies, 0.0, MAX_SURPRISAL)
    excess = np.clip(surprisal - entropy, 0.0, None)
    position = np.broadcast_to(np.log1p(np.arange(surprisal.shape[1])), surprisal.shape)
    features = (*of_the_path(surprisal), *of_the_path(excess), entropy, position)
    return np.where(completion_mask[..., None], np.stack(features, axis=-1) / 2, 0.0)


def of_the_path(surprisal: Float[np.ndarray, "B T"]):
    """Last, largest and log(1 + sum) of what stands before each token, (B, T) each."""
    before = np.zeros_like(surprisal)
    before[:, 1:] = surprisal[:, :-1]
    return before, np.maximum.accumulate(before, axis=1), np.log1p(np.cumsum(before, axis=1))


def path_regression() -> Regression:
    """The regression of `value_features`: on the path alone, every product as likely as any, and
    without bounds."""
    return Regression([SurprisalInputs()], ridge=(10.0, 10.0, 10.0), clip=False)


class SurprisalInputs:
    """`surprisal_features`: known of every completion, whatever the task."""

    name = "surprisal"
    width = NUM_FEATURES

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T 8"]:
        return surprisal_features(
            rollouts.token_logprobs_old, rollouts.token_entropies, rollouts.completion_mask
        )
