"""Runs for the inspector's tests and benchmark, written by the trainer's own writer."""

import json

import numpy as np

from spo.config import SPOConfig
from spo.rollouts import Rollouts, save_rollouts

WORDS = "let the sum of two numbers be x and so then result 12 + 30 = 42 .".split(" ")  # noqa: SIM905
WORDS += ["\ntherefore", "\n\n", "\\frac{a}{b}", "é", "日本", "👍🏽"]


def write_run(
    folder, steps=(1, 2, 3), prompts=3, generations=4, length=40, critic=True, seed=0, **config
):
    """A run folder with rollouts/step-*.parquet and metrics.jsonl; returns the folder."""
    for step in steps:
        rng = np.random.default_rng(seed + step)
        rollouts = make_rollouts(rng, step, prompts, generations, length, critic)
        save_rollouts(
            rollouts,
            folder / "rollouts" / f"step-{step:06d}.parquet",
            config=SPOConfig(num_generations=generations, **config),
            run_id="fixture",
        )
    lines = [
        json.dumps({"step": step, "reward": step / 10, "spo/value_loss": 1 / step})
        for step in range(1, max(steps) + 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def make_rollouts(rng, step, prompts, generations, length, critic=True) -> Rollouts:
    """Completions of words; the groups share their first tokens, as real ones do."""
    rows = prompts * generations
    lengths = rng.integers(max(1, length // 2), length + 1, rows)
    pieces = [["The", " sum"] + [word_of(rng) for _ in range(n - 2)] for n in lengths]
    return from_pieces(rng, step, pieces, generations, critic)


def word_of(rng) -> str:
    word = WORDS[rng.integers(len(WORDS))]
    return word if word.startswith("\n") else f" {word}"


def from_pieces(rng, step, pieces, generations, critic=True, prompts=None) -> Rollouts:
    """Rollouts whose tokens are the given texts, with random numbers around them."""
    rows, most = len(pieces), max((len(row) for row in pieces), default=0)
    vocabulary = {text: i for i, text in enumerate(sorted({t for row in pieces for t in row}))}
    mask = np.arange(most)[None] < np.array([len(row) for row in pieces])[:, None]
    token_ids = np.zeros(mask.shape, dtype=np.int64)
    token_ends = np.full(mask.shape, -1, dtype=np.int64)
    for i, row in enumerate(pieces):
        token_ids[i, : len(row)] = [vocabulary[text] for text in row]
        token_ends[i, : len(row)] = np.cumsum([len(text.encode()) for text in row])

    def floats(low, high):
        return np.where(mask, rng.uniform(low, high, mask.shape), 0).astype(np.float32)

    rewards = rng.integers(0, 2, rows).astype(np.float32)
    token_rewards = np.zeros(mask.shape, dtype=np.float32)
    for i, row in enumerate(pieces):
        if row:
            token_rewards[i, len(row) - 1] = rewards[i]
    logprobs = -floats(0, 3)
    return Rollouts(
        step=step,
        num_generations=generations,
        prompts=prompts or [f"Question {i // generations}: what is 12 + 30?" for i in range(rows)],
        completions=["".join(row) for row in pieces],
        prompt_ids=[[1, 2, 3]] * rows,
        token_ids=token_ids,
        completion_mask=mask,
        token_ends=token_ends,
        token_entropies=floats(0, 2.5) ** 2,
        token_logprobs_old=logprobs,
        token_logprobs_ref=logprobs - floats(-0.3, 0.3),
        token_values=floats(0, 1) if critic else None,
        token_rewards=token_rewards,
        completion_rewards=rewards,
        rewards_by_function=np.stack([rewards, np.zeros(rows, np.float32)], axis=1),
        reward_names=["correct", "format"],
        truncated=np.arange(rows) == 1,
        prompt_index=np.arange(rows) // generations,
    )
