"""Held-out prompts -> mean rewards, one completion per prompt."""

from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from spo.config import SPOConfig
from spo.generation.engine import Generator, SamplingParams
from spo.generation.text import completion_texts
from spo.prompts import PromptBatch
from spo.rewards.functions import RewardFunction, nothing_scored
from spo.rewards.verifiers import VERIFIERS
from spo.scoring import reward

EVAL_STEP = 2**31
"""Takes the place of the step in the seed of sampling, so that every evaluation draws alike."""


@torch.no_grad()
def evaluate(
    dataset: Any,
    generator: Generator,
    params: SamplingParams,
    reward_functions: list[RewardFunction],
    processing_class: Any,
    args: SPOConfig,
) -> dict[str, float]:
    """Means over a prepared data set, each process doing its share.

    "eval/accuracy": the fraction with full marks from the first reward function, where that is a
    verifier.

    Raises:
        RewardError: not one completion could be scored.
    """
    processes = PartialState()
    mine = np.arange(len(dataset))[processes.process_index :: processes.num_processes]
    scores: list[list[float]] = []
    for start in range(0, len(mine), args.per_device_eval_batch_size):
        rows = mine[start : start + args.per_device_eval_batch_size]
        prompts = PromptBatch.take(dataset, EVAL_STEP, rows, rows)
        completions = generator(prompts, params, EVAL_STEP)
        texts, _ = completion_texts(processing_class, completions.token_ids)
        rewards = reward(prompts, texts, completions, reward_functions, args.reward_weights)
        lengths = [len(ids) for ids in completions.token_ids]
        columns = (lengths, rewards.completion_rewards, rewards.rewards_by_function)
        scores += np.column_stack(columns).tolist()
    names = [function.name for function in reward_functions]
    scores_of_all = np.array(gather_object(scores))
    if np.isnan(scores_of_all[:, 1]).all():
        raise nothing_scored(names, len(scores_of_all))
    return _means(scores_of_all, names)


def _means(scores: np.ndarray, reward_names: list[str]) -> dict[str, float]:
    """Columns length, reward, one per reward function -> means over what could be scored."""
    names = ["completions/mean_length", "reward", *(f"rewards/{n}/mean" for n in reward_names)]
    metrics = {
        f"eval/{name}": float(np.nanmean(column))
        for name, column in zip(names, scores.T, strict=True)
        if not np.isnan(column).all()
    }
    if reward_names[0] in VERIFIERS:
        metrics["eval/accuracy"] = float((scores[:, 2] >= 1.0).mean())
    return metrics
