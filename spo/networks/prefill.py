"""Prompts -> the cache that their completions go on from, each prompt computed once.

Sampling and the update share it: behind `DecodeStep.run` stands an ordinary forward pass, so
gradients go through keys and values. A recurrent state is overwritten in place and continued one
token at a time: sampling goes on from it, the update does not (`is_recurrent`).

Axes: b rows, P distinct prompts among them, L tokens of the longest, H hidden width.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, cache_utils
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

WITHOUT_ATTENTION = (cache_utils.DummyLayer,) if hasattr(cache_utils, "DummyLayer") else ()
"""The cache of a layer that needs none; unknown to Transformers 5.19, which vLLM 0.32 asks for."""

ROOM = 1 / 8
"""For further tokens, as a share of those in the cache."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer with room for further tokens.

    transformers' DynamicLayer copies the whole cache for every token, which makes sampling
    quadratic in the length; here most tokens are written in place, and room is made for many
    at a time. Where gradients are wanted nothing may be overwritten: there it is a DynamicLayer.
    """

    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states, value_states, *args, **kwargs):
        """Append (b, heads, new, size) each; returns all keys and values so far."""
        before = self.get_seq_length()
        if torch.is_grad_enabled() or not before:
            return super().update(key_states, value_states)
        after = before + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < after:
            self.room = _with_room(self.keys, after), _with_room(self.values, after)
        self.keys, self.values = (whole[..., :after, :] for whole in self.room)
        self.keys[..., before:, :] = key_states
        self.values[..., before:, :] = value_states
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # copies them out of the room
        self.room = None


def _with_room(cached: Tensor, length: int) -> Tensor:
    """A copy with space for at least `length` tokens."""
    *head, old, size = cached.shape
    whole = cached.new_empty(*head, length + int(ROOM * length) + 16, size)
    whole[..., :old, :] = cached
    return whole


def empty_cache(config: PreTrainedConfig) -> DynamicCache:
    """Layers with room; those of another kind, a sliding window's for one, as transformers has
    them."""
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def can_select_rows(cache: DynamicCache) -> bool:
    """Every layer is of a kind whose rows `select_rows` knows to select."""
    known = (DynamicIndexedLayer, DynamicSlidingWindowLayer, PreallocatedLayer)
    return all(
        type(layer) in (*known, *WITHOUT_ATTENTION)
        or isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in cache.layers
    )


def is_recurrent(cache: DynamicCache) -> bool:
    """Some layer keeps a state that each token overwrites: linear attention, a convolution."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def select_rows(cache: DynamicCache, indices: Int[Tensor, " b"]) -> None:
    """Keep these rows of the cache, in this order, repeated where an index is."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(indices)  # of its keys and values as well
        else:
            layer.batch_select_indices(indices)


def cache_argument(decoder: nn.Module) -> str | None:
    """The name by which the decoder's forward pass takes a cache, and a mask over what is cached;
    None: it takes none, or swallows them. Since Transformers 5.24 all call it `cache`."""
    names = inspect.signature(decoder.forward).parameters
    known = ("cache", "past_key_values", "cache_params") if "attention_mask" in names else ()
    return next((name for name in known if name in names), None)


def filler(rows: Iterable[Sequence[int]]) -> int:
    """A token to pad with: one of the rows' own. The embedding of a pad token may be all zeros, and
    a norm of it without gradient (Gemma 3n), which NaN times 0 would carry everywhere."""
    return next(chain.from_iterable(rows), 0)


@dataclass(frozen=True)
class SharedPrompts:
    """The distinct prompts of some rows, left-padded, so that all end in the last column.

    Attributes:
        input_ids, attention_mask: (P, L).
        of_row: which of the P each row continues, (b,).
        equally_long: nothing is padded.
    """

    input_ids: Int[Tensor, "P L"]
    attention_mask: Int[Tensor, "P L"]
    of_row: Int[Tensor, " b"]
    equally_long: bool = False

    @classmethod
    def build(cls, prompt_ids: list[Sequence[int]], device: torch.device) -> "SharedPrompts":
        """From the prompt of each row; an empty one is padding throughout."""
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}
        width = max(map(len, index))
        input_ids = np.full((len(index), width), filler(index), dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for prompt, i in index.items():
            input_ids[i, width - len(prompt) :] = prompt
            mask[i, width - len(prompt) :] = 1
        of_row = np.array([index[tuple(prompt)] for prompt in prompt_ids])
        tensors = (torch.from_numpy(x).to(device) for x in (input_ids, mask, of_row))
        return cls(*tensors, equally_long=bool(mask.all()))

    def first_step(self, config: PreTrainedConfig) -> "DecodeStep":
        """The distinct prompts and an empty cache for a decoder of this config."""
        return DecodeStep(
            self.input_ids,
            None if self.equally_long else self.attention_mask,
            (self.attention_mask.cumsum(1) - 1).clamp(min=0),
            empty_cache(config),
        )

    @property
    def row_mask(self) -> Int[Tensor, "b L"] | None:
        """The attention mask of every row's prompt; None where all are equally long."""
        return None if self.equally_long else self.attention_mask[self.of_row]

    @property
    def row_lengths(self) -> Int[Tensor, " b"]:
        """The tokens of every row's prompt."""
        return self.attention_mask.sum(1)[self.of_row]


@dataclass(frozen=True)
class DecodeStep:
    """Tokens that follow what a key-value cache holds; the pass appends them to it.

    Attributes:
        input_ids, position_ids: (b, S).
        attention_mask: over the cached tokens and these, (b, cached + S); None: all are seen, and
            the model need not look.
    """

    input_ids: Int[Tensor, "b S"]
    attention_mask: Int[Tensor, "b K"] | None
    position_ids: Int[Tensor, "b S"]
    cache: DynamicCache

    def run(self, decoder: nn.Module) -> Float[Tensor, "b S H"]:
        """The last hidden states."""
        mask = self.attention_mask
        has_attention = any(isinstance(layer, CacheLayerMixin) for layer in self.cache.layers)
        if mask is not None and not has_attention:  # a recurrent state has seen what is cached
            mask = mask[:, -self.input_ids.shape[1] :]
        return decoder(
            input_ids=self.input_ids,
            attention_mask=mask,
            position_ids=self.position_ids,
            use_cache=True,
            **{cache_argument(decoder): self.cache},
        ).last_hidden_state
