"""What the path to each token cost under the rollout policy, as inputs of a regression."""

import numpy as np
from jaxtyping import Float

from spo.features import NUM_FEATURES, surprisal_features
from spo.rollouts import Rollouts


class SurprisalInputs:
    """`surprisal_features`: known of every completion, whatever the task."""

    name = "surprisal"
    width = NUM_FEATURES

    def read(self, rollouts: Rollouts) -> Float[np.ndarray, "B T 8"]:
        return surprisal_features(
            rollouts.token_logprobs_old, rollouts.token_entropies, rollouts.completion_mask
        )

    def observe(self, rollouts: Rollouts) -> None:
        """It remembers nothing."""

    def state(self) -> dict[str, np.ndarray]:
        return {}
