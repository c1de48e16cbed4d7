"""Prompts -> the key-value cache that their completions go on from, each prompt computed once.

Sampling and the update share it: behind `run` stands an ordinary forward pass, so gradients go
through the cache, too.

Axes: b rows, P distinct prompts among them, L tokens of the longest, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass(frozen=True)
class SharedPrompts:
    """The distinct prompts of some rows, left-padded, so that all end in the last column.

    Attributes:
        input_ids, attention_mask: (P, L).
        of_row: which of the P each row continues, (b,).
    """

    input_ids: Int[Tensor, "P L"]
    attention_mask: Int[Tensor, "P L"]
    of_row: Int[Tensor, " b"]

    @classmethod
    def build(cls, prompt_ids: list[Sequence[int]], device: torch.device) -> "SharedPrompts":
        """From the prompt of each row; an empty one is padding throughout."""
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}
        width = max(map(len, index))
        input_ids = np.zeros((len(index), width), dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for prompt, i in index.items():
            input_ids[i, width - len(prompt) :] = prompt
            mask[i, width - len(prompt) :] = 1
        of_row = np.array([index[tuple(prompt)] for prompt in prompt_ids])
        return cls(*(torch.from_numpy(x).to(device) for x in (input_ids, mask, of_row)))

    def run(self, decoder: nn.Module) -> tuple[Float[Tensor, "P L H"], DynamicCache]:
        """Hidden states of the distinct prompts, and the cache with an entry per row."""
        cache = DynamicCache(config=decoder.config)
        states = decoder(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            position_ids=(self.attention_mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        cache.batch_select_indices(self.of_row)
        return states, cache

    @property
    def row_mask(self) -> Int[Tensor, "b L"]:
        """The attention mask of every row's prompt."""
        return self.attention_mask[self.of_row]
