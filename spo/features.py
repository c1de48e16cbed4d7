"""What the path to each token cost under the rollout policy -> a value that reads it.

An unlikely token is often where an answer went wrong, and a critic that reads hidden states alone
hardly sees it: a state says what the text is, not how unlikely the policy found it. The numbers
exist anyway. All of them are functions of the state before the token, so a value built on them
stays a baseline and the policy gradient stays unbiased.

Axes: B completions, T completion tokens.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spo.rollouts import Rollouts

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
    features = (*_of_the_path(surprisal), *_of_the_path(excess), entropy, position)
    return np.where(completion_mask[..., None], np.stack(features, axis=-1) / 2, 0.0)


def _of_the_path(surprisal: Float[np.ndarray, "B T"]):
    """Last, largest and log(1 + sum) of what stands before each token, (B, T) each."""
    before = np.zeros_like(surprisal)
    before[:, 1:] = surprisal[:, :-1]
    return before, np.maximum.accumulate(before, axis=1), np.log1p(np.cumsum(before, axis=1))


def features_of(rollouts: Rollouts) -> Float[np.ndarray, "B T 8"]:
    """`surprisal_features` of a rollout batch, float32."""
    return surprisal_features(
        rollouts.token_logprobs_old, rollouts.token_entropies, rollouts.completion_mask
    ).astype(np.float32)


class PathValue(nn.Module):
    """The part of a token's value that `surprisal_features` predict; exactly 0 at first.

    A network of a few hundred weights. It is small enough to be fitted anew to every rollout
    batch, from where the last fit ended, so that it follows the policy at once while the critic
    network takes its one step. It lives on the CPU; every process fits its own on the whole batch.
    """

    WIDTH, STEPS, BATCH_SIZE, LEARNING_RATE = 32, 100, 4096, 1e-2

    def __init__(self):
        super().__init__()
        output = nn.Linear(self.WIDTH, 1)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.layers = nn.Sequential(nn.Linear(NUM_FEATURES, self.WIDTH), nn.GELU(), output)

    def forward(self, features: Float[Tensor, "*N 8"]) -> Float[Tensor, "*N"]:
        return self.layers(features).squeeze(-1)

    @torch.no_grad()
    def predict(self, rollouts: Rollouts) -> Float[np.ndarray, "B T"]:
        """Before every token; meaningless on padding."""
        return self(torch.from_numpy(features_of(rollouts))).numpy()

    def fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
        seed: int | list[int],
    ) -> None:
        """Least squares over the masked tokens: `STEPS` steps of Adam from the current weights."""
        inputs = torch.from_numpy(features_of(rollouts)[mask])
        wanted = torch.from_numpy(targets[mask].astype(np.float32))
        rng = np.random.default_rng(seed)
        optimizer = torch.optim.Adam(self.parameters(), self.LEARNING_RATE)
        for _ in range(self.STEPS if len(wanted) else 0):
            rows = torch.from_numpy(rng.integers(len(wanted), size=self.BATCH_SIZE))
            optimizer.zero_grad()
            (self(inputs[rows]) - wanted[rows]).square().mean().backward()
            optimizer.step()

    def save(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "path_value.safetensors")

    def load(self, folder: Path) -> None:
        """Restore what `save` left in the folder, if anything."""
        if (folder / "path_value.safetensors").is_file():
            self.load_state_dict(load_file(folder / "path_value.safetensors"))
