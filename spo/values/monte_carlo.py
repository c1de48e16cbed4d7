"""Continuations from where segments start -> what the policy itself makes of a state.

As VinePPO (Kazemnejad et al. 2024, arXiv 2410.01679) and SPO-chain (Guo et al. 2025, arXiv
2505.23564) value states. Here the mean of K continuations is an input of the regression, which
finds by itself how far to trust it beside the other sources.

Axes: B completions, T completion tokens, N states continued from.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import Bool, Float, Int

from spo.generation.engine import Generator, SamplingParams
from spo.generation.text import completion_texts
from spo.prompts import PromptBatch
from spo.rollouts import Completions, Rollouts
from spo.rows import own_rows
from spo.segments import segment_starts

FIRST_ROW = 2**32
"""Continuations are numbered from here, so that they draw other random numbers than rollouts."""

Reward = Callable[[PromptBatch, list[str], Completions], np.ndarray]
"""Rewards of whole completions, (b,), NaN where there is none."""


class MonteCarloInputs:
    """Mean reward of K continuations from the last state continued from, whether there is one yet,
    and how many tokens ago it was, log(1 + n) / 4.

    Args:
        generator, params, processing_class: how the run samples.
        reward: how it scores.
        num_continuations: K.
        num_segments: of each completion, those that start at the highest entropies; None: all.
    """

    name = "monte_carlo"
    width = 3

    def __init__(
        self,
        generator: Generator,
        params: SamplingParams,
        processing_class,
        reward: Reward,
        num_continuations: int,
        num_segments: int | None = None,
    ):
        self.generator, self.params, self.processing_class = generator, params, processing_class
        self.reward, self.num_continuations = reward, num_continuations
        self.num_segments = num_segments

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T 3"]:
        starts = chosen_starts(rollouts, segment_ids, self.num_segments)
        rows, places = np.nonzero(starts)
        means = self._means(rollouts, rows, places)
        known = np.zeros(starts.shape, dtype=bool)
        known[rows, places] = ~np.isnan(means)
        at_start = np.zeros(starts.shape)
        at_start[rows, places] = np.nan_to_num(means)
        positions = np.arange(starts.shape[1])
        last = np.maximum.accumulate(np.where(known, positions, -1), axis=1)
        latest = np.take_along_axis(at_start, np.maximum(last, 0), axis=1)
        has_one = last >= 0
        since = np.log1p(np.where(has_one, positions - last, 0)) / 4
        found = np.stack([np.where(has_one, latest, 0.0), has_one, since], axis=-1)
        return np.where(rollouts.completion_mask[..., None], found, 0.0)

    def _means(
        self, rollouts: Rollouts, rows: Int[np.ndarray, " N"], places: Int[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        """Mean reward after each state; NaN where none of its continuations could be scored."""
        states = np.repeat(np.arange(len(rows)), self.num_continuations)
        mine = own_rows(len(states), PartialState())
        # all processes call the generator, or none: sharded weights are gathered by all
        asked = mine if len(mine) else np.arange(min(1, len(states)))
        rewards = self._continue(rollouts, rows[states[asked]], places[states[asked]], asked)
        by_state = np.array(gather_object(rewards[: len(mine)])).reshape(
            len(rows), self.num_continuations
        )
        counts = (~np.isnan(by_state)).sum(1)
        return np.where(counts > 0, np.nansum(by_state, axis=1) / np.maximum(counts, 1), np.nan)

    def _continue(self, rollouts: Rollouts, rows, places, numbers) -> list[float]:
        """The reward of one continuation each of row `rows[i]` from its token `places[i]` on."""
        if not len(rows):
            return []
        before = [rollouts.token_ids[r, :t].tolist() for r, t in zip(rows, places, strict=True)]
        prompts = PromptBatch(
            step=rollouts.step,
            rows=FIRST_ROW + numbers,
            index=rollouts.prompt_index[rows],
            prompts=[rollouts.columns["prompt"][row] for row in rows],
            prompt_texts=[rollouts.prompts[row] for row in rows],
            prompt_ids=[rollouts.prompt_ids[row] for row in rows],
            columns={
                name: [entries[row] for row in rows]
                for name, entries in rollouts.columns.items()
                if name != "prompt"
            },
        )
        states = [ids + b for ids, b in zip(prompts.prompt_ids, before, strict=True)]
        room = self.params.max_new_tokens - places
        params = replace(self.params, max_new_tokens=int(room.max()))
        found = self.generator(replace(prompts, prompt_ids=states), params, rollouts.step)
        token_ids = [
            b + list(ids[:n]) for b, ids, n in zip(before, found.token_ids, room, strict=True)
        ]
        texts, _ = completion_texts(self.processing_class, token_ids)
        limit = self.params.max_new_tokens
        truncated = [
            len(ids) == limit and ids[-1] not in self.params.eos_token_ids for ids in token_ids
        ]
        whole = Completions(prompts.prompt_ids, token_ids, truncated)
        return self.reward(prompts, texts, whole).tolist()


def chosen_starts(
    rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"], num_segments: int | None
) -> Bool[np.ndarray, "B T"]:
    """Where a segment starts, of each completion at most so many: the highest entropies."""
    starts = segment_starts(segment_ids)
    if num_segments is None:
        return starts
    entropies = np.where(starts, rollouts.token_entropies, -np.inf)
    places = np.argsort(-entropies, axis=1, kind="stable")[:, :num_segments]
    chosen = np.zeros_like(starts)
    np.put_along_axis(chosen, places, True, axis=1)
    return chosen & starts
