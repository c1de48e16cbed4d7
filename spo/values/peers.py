"""The rewards of a completion's siblings -> inputs that say how hard its prompt is.

Axes: B completions in groups of G = `num_generations`, T completion tokens.
"""

import numpy as np
from jaxtyping import Float, Int

from spo.rollouts import Rollouts


def leave_one_out(
    completion_rewards: Float[np.ndarray, " B"], num_generations: int
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Mean and number of the siblings' rewards, the completion's own left out; mean 0 of none.

    NaN marks an unscorable completion, which nobody counts.

    >>> leave_one_out(np.array([1.0, 0.0, 1.0, np.nan]), num_generations=4)
    (array([0.5       , 1.        , 0.5       , 0.66666667]), array([2., 2., 2., 3.]))
    """
    groups = np.asarray(completion_rewards, dtype=np.float64).reshape(-1, num_generations)
    known = ~np.isnan(groups)
    rewards = np.where(known, groups, 0.0)
    others = ~np.eye(num_generations, dtype=bool)
    # summed over the others, never total minus own: not even rounding may tell a row its reward
    totals, counts = rewards @ others, (known @ others.astype(np.float64))
    return (totals / np.maximum(counts, 1)).reshape(-1), counts.reshape(-1)


class PeerInputs:
    """The siblings' mean reward, and how sure it is: n / (n + 1) with n siblings."""

    name = "peers"
    width = 2

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T 2"]:
        """The same before every token of a completion.

        Raises:
            ValueError: there are no siblings.
        """
        if rollouts.num_generations < 2:
            raise ValueError(
                "The value source 'peers' needs num_generations of at least 2: with one "
                "completion a prompt there is no sibling."
            )
        means, counts = leave_one_out(rollouts.completion_rewards, rollouts.num_generations)
        per_row = np.stack([means, counts / (counts + 1)], axis=-1)
        return np.where(rollouts.completion_mask[..., None], per_row[:, None], 0.0)
