"""Held-out prompts -> mean rewards, one completion per prompt."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from spo.generation import completion_texts, uniforms
from spo.rewards import nothing_scored

if TYPE_CHECKING:
    from spo.trainer import SPOTrainer

VERIFIERS = ("reasoning_gym", "math_verify")
"""Built-in rewards that give 1 to a right answer and less to any other."""

EVAL_STEP = 2**31
"""Takes the place of the step in the seed of sampling, so that every evaluation draws alike."""


@torch.no_grad()
def evaluate(trainer: "SPOTrainer", dataset: Any) -> dict[str, float]:
    """Means over a prepared data set, each process doing its share.

    "eval/accuracy": the fraction with full marks from the first reward function, where that is a
    verifier.

    Raises:
        RewardError: not one completion could be scored.
    """
    args, accelerator = trainer.args, trainer.accelerator
    sampling = trainer.sampling(args.eval_temperature)
    mine = np.arange(len(dataset))[accelerator.process_index :: accelerator.num_processes]
    scores: list[list[float]] = []
    for start in range(0, len(mine), args.per_device_eval_batch_size):
        rows = mine[start : start + args.per_device_eval_batch_size]
        prompts = dataset.select(rows)
        noise = uniforms(args.seed, EVAL_STEP, rows, args.max_completion_length)
        samples = trainer.sample(prompts["prompt_ids"], noise, sampling)
        texts, _ = completion_texts(trainer.processing_class, samples.token_ids)
        rewards = trainer.rewards(prompts, texts, samples)
        totals = np.where(rewards.scorable, rewards.completion_rewards, np.nan)
        lengths = [len(ids) for ids in samples.token_ids]
        scores += np.column_stack([lengths, totals, rewards.rewards_by_function]).tolist()
    names = [function.name for function in trainer.reward_functions]
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
