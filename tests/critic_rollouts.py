"""Rollouts of plain texts, for tests of value sources: a token per character unless cut otherwise.

`rollouts_of(...)` fills in what a value source may read: prompts, texts, token ends, rewards,
log-probs, entropies and data set columns.
"""

import numpy as np

from spo.rollouts import Rollouts


def rollouts_of(
    completions: list[str],
    prompts: list[str] | None = None,
    rewards: list[float] | None = None,
    num_generations: int = 1,
    columns: dict[str, list] | None = None,
    prompt_index: list[int] | None = None,
    cuts: list[list[int]] | None = None,
    seed: int = 0,
) -> Rollouts:
    """`cuts`: the length of each token in bytes; an end token of length 0 follows every text.

    Log-probs and entropies are drawn token by token, so a shorter text has the same beginning.
    """
    characters = [[ord(c) for c in text] for text in completions] if cuts is None else None
    cuts = cuts or [[len(c.encode()) for c in text] for text in completions]
    lengths = [len(pieces) + 1 for pieces in cuts]
    shape = (len(completions), max(lengths))
    token_ends = np.full(shape, -1)
    for row, pieces in enumerate(cuts):
        token_ends[row, : lengths[row]] = np.cumsum([*pieces, 0])
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    token_ids = np.zeros(shape, dtype=np.int64)
    for row, ids in enumerate(characters or []):
        token_ids[row, : len(ids)] = ids
    rng = np.random.default_rng(seed)
    noise = rng.exponential(size=(200, 2, shape[0]))[: shape[1]].transpose(1, 2, 0)
    rewards = np.array([0.0] * shape[0] if rewards is None else rewards, dtype=np.float32)
    token_rewards = np.zeros(shape, dtype=np.float32)
    token_rewards[np.arange(shape[0]), np.array(lengths) - 1] = np.nan_to_num(rewards)
    index = prompt_index or np.arange(shape[0]) // num_generations
    return Rollouts(
        step=1,
        num_generations=num_generations,
        prompts=prompts or [""] * shape[0],
        completions=completions,
        prompt_ids=[[0]] * shape[0],
        token_ids=token_ids,
        completion_mask=mask,
        token_ends=token_ends,
        token_entropies=np.where(mask, noise[0], 0.0).astype(np.float32),
        token_logprobs_old=np.where(mask, -noise[1], 0.0).astype(np.float32),
        token_logprobs_ref=None,
        token_values=None,
        token_rewards=token_rewards,
        completion_rewards=rewards,
        rewards_by_function=rewards[:, None],
        reward_names=["test"],
        truncated=np.zeros(shape[0], dtype=bool),
        prompt_index=np.array(index, dtype=np.int64),
        columns=columns or {},
        action_mask=mask,
    )
