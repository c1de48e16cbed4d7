"""What one rollout file is to the inspector: rollouts, credit, and what training used."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.rollouts import Credit, Rollouts

CREDIT_FIELDS = (
    "entropy_percentile",
    "segmentation",
    "segment_length",
    "segment_delimiter",
    "gamma",
    "lam",
    "lam_critic",
    "advantage_level",
    "normalize_advantages",
    "segment_value",
    "scale_rewards",
    "multi_objective_aggregation",
    "reward_weights",
    "mask_truncated_completions",
    "kl_in_reward",
    "beta",
)
"""What `assign_credit` reads of a configuration. The rest of a saved one is not looked at, so that
files of other versions open."""


@dataclass(eq=False)
class Step:
    """One step, or one prompt group of it, as the inspector sees it.

    Attributes:
        rollouts, credit: as saved. In reduced mode every completion is one pseudo-token that
            spans its text and carries the saved advantage.
        config: what the trainer used, as far as CREDIT_FIELDS go; None in reduced mode.
        missing: what the file does not hold, in words; not empty in reduced mode.
        beside: columns of the data set that were saved, such as the reference answer, by row.
        reference_items: what completions and references were compared by.
    """

    rollouts: Rollouts
    credit: Credit
    config: SPOConfig | None
    run_id: str
    missing: tuple[str, ...] = ()
    beside: dict[str, list[str]] = field(default_factory=dict)
    reference_items: tuple[str, ...] = ()

    @cached_property
    def recomputed(self) -> Credit:
        """What `assign_credit` makes of the rollouts under the saved configuration.

        Raises:
            ValueError: the saved numbers cannot be cut (NaN, uneven groups).
        """
        for name in ("token_entropies", "token_values", "token_rewards"):
            array = getattr(self.rollouts, name)
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinite numbers.")
        return assign_credit(self.rollouts, self.config)


class Group(NamedTuple):
    """Where one prompt group is: `step` may hold the whole step or only this group.

    `index` is the group's position in `step`, `first_row` the row of the whole step at which
    `step` begins.
    """

    step: Step
    index: int
    first_row: int
