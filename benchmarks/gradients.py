"""How noisy is the policy gradient of each way to assign credit, and how right are the values?

    python benchmarks/gradients.py --task chain_sum

At the task's base model, with nothing trained: many rollout batches, and for each of them the
policy gradient every mode would take. The signal is the squared length of the mean gradient, the
noise the trace of the covariance over batches; a mode with twice the signal-to-noise ratio needs
half the completions for a gradient as good. Its cosine to the unbiased gradient of group-relative
advantages (without division by the std) shows the bias that a critic brings in. Adam divides each
coordinate by its own noise, so noise that stays in a few coordinates costs it little; the gain of a
step of Adam, to first order, is listed, too.

Values: from the starts of segments, 32 continuations are sampled; their mean reward is what the
critic's value should be.
"""

import argparse
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_result
from learning import make_base
from learning_modes import FIRST
from learning_tasks import TASKS, problems

from spo import SPOConfig, SPOTrainer
from spo.advantages import assign_credit
from spo.generation.sampler import sample, uniforms
from spo.generation.text import completion_texts
from spo.losses import token_weights
from spo.metrics import explained_variance
from spo.networks.batching import Sequences
from spo.prompts import PromptBatch
from spo.rollouts import Rollouts
from spo.scoring import reward, score
from spo.segments import segment, segment_starts
from spo.values.regression import Regression
from spo.values.surprisal import path_regression

UNBIASED = "group mean, undivided"
SETTINGS = {
    UNBIASED: {"scale_rewards": "none"},
    "grpo": {},
    **{
        f"p={p} λ={lam}": {"entropy_percentile": p, "lam": lam, "normalize_advantages": False}
        for p in (0.05, 0.2, 1.0)
        for lam in (0.0, 0.8, 0.95, 1.0)
    },
}
"""Those without p take no critic."""


def make_trainer(task_name: str, batch_size: int, num_batches: int, folder: str) -> SPOTrainer:
    """A trainer that is only asked to sample and to score."""
    task = TASKS[task_name]
    settings = task.settings | {"per_device_train_batch_size": batch_size}
    settings |= {"max_steps": num_batches, "seed": 0}
    train, _ = problems(task, settings)
    return SPOTrainer(
        model=str(task.base_folder),
        reward_funcs="reasoning_gym",
        args=SPOConfig(output_dir=folder, use_cpu=True, **settings),
        train_dataset=train,
    )


def rollout_batch(trainer: SPOTrainer, step: int) -> Rollouts:
    prompts = trainer.prompts.batch(step)
    completions = trainer.generator(prompts, trainer.sampling_params, step)
    judges = (trainer.processing_class, trainer.reward_functions)
    return score(prompts, completions, *judges, trainer.policy, trainer.reference, trainer.args)


def fit(regression: Regression, rollouts: Rollouts, segment_ids: np.ndarray) -> None:
    returns = np.broadcast_to(rollouts.completion_rewards[:, None], rollouts.token_rewards.shape)
    regression.predict(rollouts, segment_ids)  # which reads what is fitted
    regression.fit(rollouts, returns, rollouts.completion_mask)


def policy_gradients(
    trainer: SPOTrainer, rollouts: Rollouts, advantages: list[np.ndarray]
) -> list[np.ndarray]:
    """∇ Σ weight · advantage · log π for each (B, T) of advantages, as one vector each."""
    weights = token_weights(rollouts.completion_mask, "dapo", trainer.args.max_completion_length)
    sequences = Sequences(rollouts.prompt_ids, rollouts.ragged_token_ids, share_prompts=True)
    policy, every_row = trainer.policy, np.arange(len(rollouts))
    parameters = policy.trainable
    sums = [np.zeros(sum(p.numel() for p in parameters), np.float32) for _ in advantages]
    with policy.active():
        for batch in sequences.micro_batches(every_row, 32, None, policy.device):
            logprobs = policy(batch, want="logprobs")
            chosen = (batch.rows, slice(logprobs.shape[1]))
            for total, of_mode in zip(sums, advantages, strict=True):
                factors = torch.from_numpy((weights * of_mode)[chosen]).float()
                gradient = torch.autograd.grad(logprobs, parameters, factors, retain_graph=True)
                total += torch.cat([g.reshape(-1) for g in gradient]).numpy()
    return sums


def signal_and_noise(gradients: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """Of (batches, parameters). Products of means over different halves hold no noise of their own,
    so that signal, cosine and gain are unbiased up to their ratio.

    `adam_gain` is the reference gradient times the mean step of Adam, gradient over root mean
    square: the rise of the expected reward per unit of learning rate.
    """

    def product(a: np.ndarray, b: np.ndarray) -> float:
        even, odd = slice(0, None, 2), slice(1, None, 2)
        return float(a[even].mean(0) @ b[odd].mean(0) + a[odd].mean(0) @ b[even].mean(0)) / 2

    def adam(a: np.ndarray) -> np.ndarray:
        return a / np.maximum(np.sqrt(np.square(a).mean(0)), 1e-12)

    noise = float(gradients.var(0, ddof=1).sum())
    signal = product(gradients, gradients)
    lengths = signal * product(reference, reference)
    known = signal > 0 and lengths > 0  # else noise is all there is
    cosine = product(gradients, reference) / lengths**0.5 if known else None
    return {
        "signal_to_noise": signal / noise,
        "cosine": cosine,
        "adam_gain": product(adam(gradients), reference),
    }


def compare(trainer: SPOTrainer, warm_up: int, num_batches: int) -> dict[str, Any]:
    """Gradients of every mode on the same batches, with a critic fitted to `warm_up` others."""
    regression, explained = path_regression(), []
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in SETTINGS}
    for step in range(1, warm_up + num_batches + 1):
        scored = rollout_batch(trainer, step)
        segment_ids = segment(scored, trainer.args)
        if step <= warm_up:
            fit(regression, scored, segment_ids)
            continue
        valued = scored.with_values(regression.terms(scored, segment_ids))
        returns = np.broadcast_to(scored.completion_rewards[:, None], scored.token_rewards.shape)
        explained.append(explained_variance(valued.token_values, returns, scored.completion_mask))
        credits = [
            assign_credit(valued if "lam" in settings else scored, SPOConfig(**settings))
            for settings in SETTINGS.values()
        ]
        found = policy_gradients(trainer, scored, [credit.token_advantages for credit in credits])
        for name, gradient in zip(SETTINGS, found, strict=True):
            gradients[name].append(gradient)
        print(f"batch {step - warm_up} of {num_batches}", flush=True)
    reference = np.array(gradients[UNBIASED])
    rows = [
        {"mode": name, **signal_and_noise(np.array(of_mode), reference)}
        for name, of_mode in gradients.items()
    ]
    return {
        "rows": rows,
        "explained_variance": float(np.mean(explained)),
        "values": compare_values(trainer, valued),
    }


def compare_values(trainer: SPOTrainer, rollouts: Rollouts, continuations: int = 32) -> dict:
    """The critic's values at segment starts against Monte Carlo ones."""
    config = SPOConfig(**FIRST["spo_p20"])
    starts = segment_starts(assign_credit(rollouts, config).segment_ids)
    rng = np.random.default_rng(0)
    states = rng.permutation(np.argwhere(starts))[:120]
    values = rollouts.token_values[states[:, 0], states[:, 1]]
    monte_carlo = np.array([_mean_reward(trainer, rollouts, *s, continuations) for s in states])
    groups = rollouts.completion_rewards.reshape(-1, rollouts.num_generations).mean(1)
    group_means = np.repeat(groups, rollouts.num_generations)[states[:, 0]]
    return {
        "states": len(states),
        "continuations": continuations,
        "correlation": float(np.corrcoef(values, monte_carlo)[0, 1]),
        "rms_error": float(np.sqrt(np.mean((values - monte_carlo) ** 2))),
        "group_mean_correlation": float(np.corrcoef(group_means, monte_carlo)[0, 1]),
        "group_mean_rms_error": float(np.sqrt(np.mean((group_means - monte_carlo) ** 2))),
    }


def _mean_reward(trainer: SPOTrainer, rollouts: Rollouts, row: int, start: int, count: int):
    """Mean reward of `count` completions that share their first `start` tokens."""
    begun = rollouts.token_ids[row, :start].tolist()
    length = trainer.args.max_completion_length - start
    noise = uniforms(1, int(row), np.arange(start * count, (start + 1) * count), length)
    params = replace(trainer.sampling_params, max_new_tokens=length)
    trainer.policy.train(False)
    prompt = [*rollouts.prompt_ids[row], *begun]
    with trainer.policy.merged():
        samples = sample(trainer.policy, [prompt] * count, noise, params)
    whole = replace(samples, token_ids=[[*begun, *ids] for ids in samples.token_ids])
    texts, _ = completion_texts(trainer.processing_class, whole.token_ids)
    index = np.repeat(rollouts.prompt_index[row], count)
    problem = PromptBatch.take(trainer.train_dataset, rollouts.step, np.arange(count), index)
    judges = (trainer.reward_functions, trainer.args)
    return reward(problem, texts, whole, *judges).completion_rewards.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=TASKS, default="chain_sum")
    parser.add_argument("--batch_size", type=int, default=64, help="completions per gradient")
    parser.add_argument("--batches", type=int, default=40, help="that give gradients")
    parser.add_argument("--warm_up", type=int, default=8, help="that the critic is fitted to")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    make_base(options.task)
    with tempfile.TemporaryDirectory() as folder:
        batches = options.warm_up + options.batches
        trainer = make_trainer(options.task, options.batch_size, batches, folder)
        result = compare(trainer, options.warm_up, options.batches)
    print(json.dumps(result, indent=1))
    shape = {"task": options.task, "batch_size": options.batch_size, "batches": options.batches}
    write_result(f"gradients_{options.task}", {"shape": shape} | result, options.out)


if __name__ == "__main__":
    main()
