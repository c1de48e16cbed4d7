"""Two per-token estimators of KL(π‖π_ref) from log-probs of sampled tokens; numpy or torch.

Schulman, "Approximating KL Divergence" (2020).
"""

from typing import TypeVar

import numpy as np

Array = TypeVar("Array")
"""A numpy array or a torch tensor; both arguments are of the same kind and shape."""


def kl_k1(token_logprobs: Array, token_logprobs_ref: Array) -> Array:
    """log π − log π_ref: unbiased under samples of π, of either sign.

    >>> kl_k1(np.array([-1.0]), np.array([-3.0]))
    array([2.])
    """
    return token_logprobs - token_logprobs_ref


def kl_k3(token_logprobs: Array, token_logprobs_ref: Array) -> Array:
    """exp(−k1) − 1 + k1: unbiased too, never negative, with less variance; GRPO's penalty
    (arXiv 2402.03300, eq. 4).

    >>> kl_k3(np.array([0.0]), np.array([0.0]))
    array([0.])
    """
    k1 = kl_k1(token_logprobs, token_logprobs_ref)
    exponential = np.exp(-k1) if isinstance(k1, np.ndarray) else (-k1).exp()
    return exponential - 1 + k1
