"""A value that reads `surprisal_features`: least squares in closed form.

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
from spo.values.surprisal import NUM_FEATURES, surprisal_features

FILE = "path_value.safetensors"
NUM_PRODUCTS = 1 + NUM_FEATURES * (NUM_FEATURES + 3) // 2


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
