"""Held-out prompts -> mean rewards, one completion per prompt; and the rollouts of the first ones,
always the same, so that the inspector can compare a run's beginning with its end."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.generation.engine import Generator, SamplingParams
from spo.generation.text import completion_texts
from spo.metrics import tool_metrics
from spo.networks.network import Network
from spo.prompts import PromptBatch
from spo.rewards.functions import RewardFunction, nothing_scored
from spo.rewards.logged import Logged
from spo.rewards.verifiers import VERIFIERS
from spo.rollouts import Completions, Credit, Rollouts, stack_rows
from spo.scoring import metrics_of_all, records, reward, token_columns, with_columns

EVAL_STEP = 2**31
"""Takes the place of the step in the seed of sampling, so that every evaluation draws alike."""
SAVED_PROMPTS = 128
"""The first so many prompts of the data set have their rollouts saved."""


@torch.no_grad()
def evaluate(
    dataset: Any,
    generator: Generator,
    params: SamplingParams,
    reward_functions: list[RewardFunction],
    processing_class: Any,
    args: SPOConfig,
    policy: Network | None = None,
    trainer_state: Any = None,
    prefix: str = "eval",
) -> tuple[dict[str, float], tuple[Rollouts, Credit] | None]:
    """Means over a prepared data set, each process doing its share: "eval_reward", ...; and the
    rollouts to save.

    "eval_accuracy": the fraction with full marks from the first reward function, where that is a
    verifier.

    Args:
        policy: says the log-probs and entropies of the rollouts where the generator does not;
            None: no rollouts.

    Raises:
        RewardError: not one completion could be scored.
    """
    processes, size = PartialState(), args.per_device_eval_batch_size
    every = np.arange(len(dataset) * args.num_generations_eval)
    shares = [every[rank :: processes.num_processes] for rank in range(processes.num_processes)]
    mine = shares[processes.process_index]
    scores: list[list[float]] = []
    logged: list[Logged] = []
    kept = _Kept()
    for start in range(0, len(shares[0]), size):
        rows = mine[start : start + size]
        # all processes call the generator equally often: sharded weights are gathered by all
        asked = rows if len(rows) else every[:1]
        index = asked // args.num_generations_eval
        prompts = PromptBatch.take(dataset, EVAL_STEP, asked, index)
        completions = generator(prompts, params, EVAL_STEP)
        kept.recorded &= completions.token_entropies is not None
        if not len(rows):
            continue
        texts, ends = completion_texts(processing_class, completions.token_ids)
        rewards = reward(prompts, texts, completions, reward_functions, args, trainer_state)
        logged.append(rewards.logged)
        none = np.full(len(rows), np.nan)
        counts = (completions.tool_calls, completions.tool_failures)
        counts = (none if column is None else column for column in counts)
        columns = (completions.lengths, rewards.completion_rewards, rewards.rewards_by_function)
        scores += np.column_stack((*columns, *counts)).tolist()
        if policy is not None:
            kept.keep(records(prompts, completions, texts, ends, rewards, args), completions)
    names = [function.name for function in reward_functions]
    scores_of_all = np.array(gather_object(scores))
    if np.isnan(scores_of_all[:, 1]).all():
        raise nothing_scored(names, len(scores_of_all))
    saved = None if policy is None else kept.rollouts(policy, names, args)
    metrics = metrics_of_all(logged) | _means(scores_of_all, names)
    return {f"{prefix}_{name}": mean for name, mean in metrics.items()}, saved


@dataclass
class _Kept:
    """This process's completions of the prompts whose rollouts are saved.

    Attributes:
        recorded: the generator gives log-probs and entropies, to every process or to none.
    """

    recorded: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    entropies: list[list[float]] = field(default_factory=list)

    def keep(self, rows: list[dict[str, Any]], completions: Completions) -> None:
        """Those rows of a batch that are among the first SAVED_PROMPTS of the data set."""
        count = sum(int(row["prompt_index"]) < SAVED_PROMPTS for row in rows)
        self.rows += rows[:count]
        self.logprobs += (completions.token_logprobs or [])[:count]
        self.entropies += (completions.token_entropies or [])[:count]

    def rollouts(
        self, policy: Network, reward_names: list[str], args: SPOConfig
    ) -> tuple[Rollouts, Credit]:
        """The completions of all processes, by prompt, without values; their advantages are 0.

        What the generator did not record is asked of the policy in one pass, made by every process.
        """
        completions = Completions(
            prompt_ids=[row["prompt_ids"] for row in self.rows],
            token_ids=[row["token_ids"] for row in self.rows],
            truncated=[row["truncated"] for row in self.rows],
            token_logprobs=self.logprobs if self.recorded else None,
            token_entropies=self.entropies if self.recorded else None,
        )
        columns = token_columns(completions, policy, None, args)
        everybody = gather_object(with_columns(self.rows, columns))
        everybody.sort(key=lambda row: row["prompt_index"])
        size = args.num_generations_eval
        rollouts = stack_rows(
            everybody, step=EVAL_STEP, num_generations=size, reward_names=reward_names
        )
        return rollouts, assign_credit(rollouts, args)


def _means(scores: np.ndarray, reward_names: list[str]) -> dict[str, float]:
    """Columns length, reward, one per reward function, calls and failures of tools -> means over
    what could be scored."""
    names = ["completions/mean_length", "reward", *(f"rewards/{n}/mean" for n in reward_names)]
    metrics = {
        name: float(np.nanmean(column))
        for name, column in zip(names, scores[:, :-2].T, strict=True)
        if not np.isnan(column).all()
    }
    calls, failures = scores[:, -2:].T
    if not np.isnan(calls).any():
        metrics |= tool_metrics(calls, failures)
    if reward_names[0] in VERIFIERS:
        metrics["accuracy"] = float((scores[:, 2] >= 1.0).mean())
    return metrics
