"""A person's own sampling function as a `Generator`."""

import copy
from collections.abc import Callable
from typing import Any

from spo.generation.engine import SamplingParams
from spo.networks.network import Network
from spo.prompts import PromptBatch
from spo.rollouts import Completions

OURS = ("prompt_ids", "completion_ids", "logprobs", "env_mask")
"""Keys of TRL's rollout_func that are used here; all others are columns for the rewards."""


class RolloutFunc:
    """`f(prompts, trainer) -> {"prompt_ids", "completion_ids", ...}`, the interface of TRL.

    It may also return `logprobs` (of its own sampler, one number a token) and `env_mask` (1 where
    the policy chose the token, 0 on a tool's or environment's). Log-probs and entropies of the
    policy come from the trainer's own pass.
    """

    def __init__(self, func: Callable[..., dict[str, list]], trainer: Any):
        self.func, self.trainer = func, trainer

    def __call__(self, prompts: PromptBatch, params: SamplingParams, step: int) -> Completions:
        output = self.func(copy.deepcopy(prompts.prompts), self.trainer)
        for name in ("prompt_ids", "completion_ids"):
            if name not in output:
                raise ValueError(f"rollout_func returned {sorted(output)}, without {name!r}.")
        prompt_ids = [list(ids) for ids in output["prompt_ids"]]
        token_ids = [list(ids) for ids in output["completion_ids"]]
        if not len(prompt_ids) == len(token_ids) == len(prompts):
            raise ValueError(
                f"rollout_func got {len(prompts)} prompts and returned {len(prompt_ids)} "
                f"prompt_ids and {len(token_ids)} completion_ids; one of each per prompt is needed."
            )
        if not all(prompt_ids):
            raise ValueError(
                "rollout_func returned empty prompt_ids: the first token needs one before it."
            )
        logprobs = _per_token(output, "logprobs", token_ids)
        mask = _per_token(output, "env_mask", token_ids)
        return Completions(
            prompt_ids,
            token_ids,
            truncated=[not (ids and ids[-1] in params.eos_token_ids) for ids in token_ids],
            action_mask=None if mask is None else [[bool(x) for x in row] for row in mask],
            token_logprobs_sampler=logprobs if _are_real(logprobs) else None,
            columns={name: column for name, column in output.items() if name not in OURS},
        )

    def load(self, policy: Network) -> None:
        """The function has the trainer, and so the policy."""


def _are_real(logprobs: list[list[float]] | None) -> bool:
    """Not the zeros that stand for log-probs where TRL asks for some and reads none."""
    return logprobs is not None and any(number != 0 for row in logprobs for number in row)


def _per_token(output: dict[str, list], name: str, token_ids: list[list[int]]) -> list | None:
    """A column of one number per completion token, or None where it is not given."""
    if output.get(name) is None:
        return None
    rows = [list(row) for row in output[name]]
    if [len(row) for row in rows] != [len(ids) for ids in token_ids]:
        raise ValueError(f"rollout_func returned {name} of other lengths than its completion_ids.")
    return rows
