"""Rows of prompt + completion -> micro-batches, laid out for one forward pass.

Axes: b rows of a micro-batch, S prompt + completion positions, T completion tokens, N completion
tokens of all rows laid end to end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spo.networks.prefill import SharedPrompts


@dataclass(frozen=True)
class MicroBatch:
    """Prompt + completion per row, right-padded to the longest row of this micro-batch.

    Padding stands after every real token, and attention is causal: it needs no mask. Where prompts
    are shared, rows begin with their prompt's last token.

    Attributes:
        rows: which rows of the rollout batch these are, (b,).
        input_ids: (b, S).
        row_of_token, position_of_token: where each of the N tokens stands in (b, T), (N,).
        state_position: in `input_ids`, of the state before each token, (N,).
        width: tokens of the longest completion, T.
        prefixes: all but the last token of the rows' prompts; None where rows are whole.
    """

    rows: np.ndarray
    input_ids: Int[Tensor, "b S"]
    row_of_token: Int[Tensor, " N"]
    position_of_token: Int[Tensor, " N"]
    state_position: Int[Tensor, " N"]
    width: int
    prefixes: SharedPrompts | None = None

    @classmethod
    def build(
        cls,
        rows: np.ndarray,
        prompt_ids: list[list[int]],
        token_ids: list[list[int]],
        device: torch.device,
        share_prompts: bool = False,
    ) -> "MicroBatch":
        """Lay out the given rows of the ragged `prompt_ids` and `token_ids`."""
        prompts, prefixes = [prompt_ids[row] for row in rows], None
        if share_prompts:
            prefixes = SharedPrompts.build([ids[:-1] for ids in prompts], device)
            prompts = [ids[-1:] for ids in prompts]
        sequences = [[*prompt, *token_ids[row]] for prompt, row in zip(prompts, rows, strict=True)]
        input_ids = np.zeros((len(rows), max(map(len, sequences))), dtype=np.int64)
        for i, sequence in enumerate(sequences):
            input_ids[i, : len(sequence)] = sequence
        counts = np.array([len(token_ids[row]) for row in rows])
        row_of_token = np.repeat(np.arange(len(rows)), counts)
        position_of_token = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        prompt_lengths = np.array([len(prompt) for prompt in prompts])
        state_position = prompt_lengths[row_of_token] - 1 + position_of_token
        tensors = (input_ids, row_of_token, position_of_token, state_position)
        tensors = (torch.from_numpy(array).to(device) for array in tensors)
        return cls(rows, *tensors, int(counts.max(initial=0)), prefixes)

    @property
    def targets(self) -> Int[Tensor, " N"]:
        """The sampled tokens."""
        return self.input_ids[self.row_of_token, self.state_position + 1]

    def to_rows(self, flat: Float[Tensor, " N"]) -> Float[Tensor, "b T"]:
        """(N,) -> (b, T), zero on padding; differentiable."""
        padded = flat.new_zeros(len(self.rows), self.width)
        return padded.index_put((self.row_of_token, self.position_of_token), flat)


class Sequences:
    """Prompt + completion of every row of a rollout batch, to be cut into micro-batches.

    With `share_prompts` a prompt is computed once for all its completions in a micro-batch, where
    that is less work: forward and backward go through its key-value cache. Gradient checkpointing
    cannot do that.
    """

    def __init__(
        self, prompt_ids: list[list[int]], token_ids: list[list[int]], share_prompts: bool = False
    ):
        self.prompt_ids, self.token_ids, self.share_prompts = prompt_ids, token_ids, share_prompts
        self.prompt_lengths = np.array([len(ids) for ids in prompt_ids])
        self.lengths = np.array([len(ids) for ids in token_ids])
        self.total_lengths = self.prompt_lengths + self.lengths

    def micro_batches(
        self,
        rows: np.ndarray,
        max_rows: int,
        max_tokens: int | None,
        device: torch.device,
    ) -> Iterator[MicroBatch]:
        """Of the given rows, laid out: see `split`."""
        for chosen in self.split(rows, max_rows, max_tokens):
            share = self._work(chosen) < self._work_of_whole_rows(chosen)
            yield MicroBatch.build(chosen, self.prompt_ids, self.token_ids, device, share)

    def split(
        self, rows: np.ndarray, max_rows: int, max_tokens: int | None = None
    ) -> list[np.ndarray]:
        """Cut rows into micro-batches of at most `max_rows`, or of `max_tokens` padded ones.

        Longest first, so that memory runs out at once or not at all; or, where that leaves less to
        compute, prompt by prompt. A row longer than `max_tokens` stands alone.

        >>> rows = Sequences([[0]] * 4, [[0] * n for n in (1, 8, 2, 7)])
        >>> rows.split(np.arange(4), max_rows=2)
        [array([1, 3]), array([2, 0])]
        >>> rows.split(np.arange(4), max_rows=1, max_tokens=18)
        [array([1, 3]), array([2, 0])]
        """
        rows = rows[np.argsort(-self.total_lengths[rows], kind="stable")]
        by_length = self._cut(rows, max_rows, max_tokens)
        if not self.share_prompts:
            return by_length
        groups: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            groups.setdefault(tuple(self.prompt_ids[row]), []).append(row)
        by_prompt = self._cut(np.array(list(chain(*groups.values())), int), max_rows, max_tokens)
        return min(by_length, by_prompt, key=lambda parts: sum(map(self._work, parts)))

    def _cut(self, rows: np.ndarray, max_rows: int, max_tokens: int | None) -> list[np.ndarray]:
        parts = []
        while len(rows):
            longest = int(self.total_lengths[rows].max())
            count = max_rows if max_tokens is None else max(1, max_tokens // longest)
            parts.append(rows[:count])
            rows = rows[count:]
        return parts

    def _work_of_whole_rows(self, rows: np.ndarray) -> int:
        """Padded tokens with a prompt in every row."""
        return len(rows) * int(self.total_lengths[rows].max())

    def _work(self, rows: np.ndarray) -> int:
        """Padded tokens, shared prompts counted once where that is less."""
        whole = self._work_of_whole_rows(rows)
        if not self.share_prompts or self.prompt_lengths[rows].min() < 2:
            return whole
        num_prompts = len({tuple(self.prompt_ids[row]) for row in rows})
        prefixes = num_prompts * int(self.prompt_lengths[rows].max() - 1)
        return min(whole, prefixes + len(rows) * int(self.lengths[rows].max() + 1))
