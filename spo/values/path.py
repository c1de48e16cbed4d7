"""What the path to each token cost under the rollout policy -> a value that reads it.

An unlikely token is often where an answer went wrong, and a critic that reads hidden states alone
hardly sees it: a state says what the text is, not how unlikely the policy found it. The numbers
exist anyway. All of them are functions of the state before the token, so a value built on them
stays a baseline and the policy gradient stays unbiased.

Axes: B completions, T completion tokens.
"""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from spo.rollouts import Rollouts

FILE = "path_value.safetensors"
NUM_FEATURES = 8
NUM_PRODUCTS = 1 + NUM_FEATURES * (NUM_FEATURES + 3) // 2
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
    features = (*_of_the_path(surprisal), *_of_the_path(excess), entropy, position)
    return np.where(completion_mask[..., None], np.stack(features, axis=-1) / 2, 0.0)


def _of_the_path(surprisal: Float[np.ndarray, "B T"]):
    """Last, largest and log(1 + sum) of what stands before each token, (B, T) each."""
    before = np.zeros_like(surprisal)
    before[:, 1:] = surprisal[:, :-1]
    return before, np.maximum.accumulate(before, axis=1), np.log1p(np.cumsum(before, axis=1))


class PathValue:
    """The part of a token's value that `surprisal_features` predict; 0 until it is fitted.

    Least squares on the features, their squares and products, in closed form, with exponential
    forgetting: a completion counts e^(−age / MEMORY), age in completions since. So it follows the
    policy at once, while the critic network takes its one step. It stays on the CPU, in float64;
    every process fits its own on the whole rollout batch.

    Attributes:
        covariance, products: the sums Σ x xᵀ and Σ x y over tokens, (D, D) and (D,).
    """

    name = "path"
    MEMORY = 256
    RIDGE = 10.0

    def __init__(self):
        self.covariance = torch.zeros(NUM_PRODUCTS, NUM_PRODUCTS, dtype=torch.float64)
        self.products = torch.zeros(NUM_PRODUCTS, dtype=torch.float64)

    def predict(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T"]:
        """Before every token; a constant on padding."""
        ridge = self.RIDGE * torch.eye(NUM_PRODUCTS, dtype=torch.float64)
        weights = torch.linalg.solve(self.covariance + ridge, self.products)
        return (_inputs(rollouts) @ weights.numpy()).astype(np.float32)

    def fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> dict[str, float]:
        """Take in the masked tokens of a rollout batch."""
        inputs = torch.from_numpy(_inputs(rollouts)[mask])
        wanted = torch.from_numpy(targets[mask].astype(np.float64))
        kept = math.exp(-len(rollouts) / self.MEMORY)
        self.covariance.mul_(kept).add_(inputs.T @ inputs)
        self.products.mul_(kept).add_(inputs.T @ wanted)
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold; writing into these tensors restores it."""
        return {"covariance": self.covariance, "products": self.products}

    def save(self, folder: Path) -> None:
        save_file(self.state(), folder / FILE)

    def load(self, folder: Path) -> None:
        """Restore what `save` left in the folder, if anything."""
        if (folder / FILE).is_file():
            saved = load_file(folder / FILE)
            self.covariance, self.products = saved["covariance"], saved["products"]


def _inputs(rollouts: Rollouts) -> Float[np.ndarray, "B T 45"]:
    """A constant, the features, and the products of any two of them."""
    features = surprisal_features(
        rollouts.token_logprobs_old, rollouts.token_entropies, rollouts.completion_mask
    )
    first, second = np.triu_indices(NUM_FEATURES)
    constant = np.ones((*features.shape[:-1], 1))
    return np.concatenate([constant, features, features[..., first] * features[..., second]], -1)
