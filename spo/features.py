"""Log-probs and entropies of the rollout policy -> what the path so far cost. Pure numpy.

An unlikely token is often where an answer went wrong, and the critic cannot see it: a hidden
state says what the text is, not how unlikely the policy found it. These numbers exist anyway.
All of them are functions of the state before the token, so a value built on them stays a
baseline and the policy gradient stays unbiased.
"""

import numpy as np
from jaxtyping import Bool, Float

NUM_FEATURES = 4
MAX_SURPRISAL = 8.0
"""Nats. Without a bound one token the policy has drifted away from throws the values off."""


def surprisal_features(
    token_logprobs: Float[np.ndarray, "B T"],
    token_entropies: Float[np.ndarray, "B T"],
    completion_mask: Bool[np.ndarray, "B T"],
) -> Float[np.ndarray, "B T 4"]:
    """Before token t: surprisal of token t−1, the largest and the mean surprisal of tokens < t,
    and the entropy of the choice at t; in units of `MAX_SURPRISAL`, each in [0, 1].

    >>> surprisal_features(np.array([[-4.0, -2.0]]), np.array([[8.0, 0.0]]), np.ones((1, 2), bool))
    array([[[0. , 0. , 0. , 1. ],
            [0.5, 0.5, 0.5, 0. ]]])
    """
    surprisal = np.where(completion_mask, np.clip(-token_logprobs, 0.0, MAX_SURPRISAL), 0.0)
    before = np.zeros_like(surprisal)
    before[:, 1:] = surprisal[:, :-1]
    count = np.maximum(np.arange(before.shape[1]), 1)
    entropy = np.where(completion_mask, np.clip(token_entropies, 0.0, MAX_SURPRISAL), 0.0)
    features = (
        before,
        np.maximum.accumulate(before, axis=1),
        np.cumsum(before, axis=1) / count,
        entropy,
    )
    return np.stack(features, axis=-1) / MAX_SURPRISAL
