"""A Llama-like policy and one token of each row -> the logits behind it, by plain functions over
the weights of its modules.

While sampling a model of Transformers spends more time on saying what to compute than on computing:
75 operations a layer, each dispatched and launched by itself. Here they are 42: one product for
queries, keys and values and one for both halves of the MLP, as merged weights are new ones anyway;
queries and keys rotated together; no search through masks. Prompts go through the modules.

It is used where it was measured to say the same (`is_plain`); all other models decode by their own
modules.

Axes: b rows, K tokens in the cache, H hidden width, V vocabulary, D width of a head.
"""

from collections.abc import Callable, Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers.cache_utils import CacheLayerMixin
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from spo.networks.network import Network, decoder
from spo.networks.prefill import DecodeStep, SharedPrompts, select_rows
from spo.networks.probe import random_ids

LLAMA_LIKE = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
"""Decoders of which `PlainDecoder` reads every part."""

PROMPT_LENGTHS = (14, 2, 4)
"""Of the prompts that both are tried with."""

Rotation = tuple[Float[Tensor, "b 1 D"], Float[Tensor, "b 1 D"]]
"""Cosines, and sines with the sign of the half that they are multiplied with."""


class PlainDecoder:
    """What a network says of `DecodeStep`s of one token, while its weights stay as they are.

    Args:
        network: of a Llama-like model, switched on and in eval mode.
        merged: its layers whose weights hold the adapter at present; where they are multiplied with
            one input, they become views of one weight.
    """

    def __init__(self, network: Network, merged: Collection[nn.Module]):
        self.network, self.model = network, decoder(network.model)
        self.layers = [Layer(layer, merged) for layer in self.model.layers]

    def __call__(self, step: DecodeStep) -> Float[Tensor, "b V"]:
        states = self.model.embed_tokens(step.input_ids)
        cosines, sines = self.model.rotary_emb(states, step.position_ids)
        first, second = sines.chunk(2, -1)
        rotation = cosines, torch.cat([-first, second], -1)
        states, bias = states[:, 0], attention_bias(step, states.dtype)
        for layer, cache in zip(self.layers, step.cache.layers, strict=True):
            states = layer(states, rotation, bias, cache)
        return self.network.next_logits(normalised(states, self.model.norm))


class Layer:
    """One layer of the decoder."""

    def __init__(self, layer: nn.Module, merged: Collection[nn.Module]):
        attention, mlp = layer.self_attn, layer.mlp
        self.before_attention, self.before_mlp = (
            layer.input_layernorm,
            layer.post_attention_layernorm,
        )
        inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.attention_input, self.attention_output = as_one(inputs, merged), attention.o_proj
        self.mlp_input = as_one([mlp.gate_proj, mlp.up_proj], merged)
        self.mlp_output, self.activation = mlp.down_proj, mlp.act_fn
        self.scale, self.width = attention.scaling, attention.head_dim
        self.num_heads = attention.config.num_attention_heads
        self.num_key_heads = attention.config.num_key_value_heads
        self.norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]

    def __call__(
        self,
        states: Float[Tensor, "b H"],
        rotation: Rotation,
        bias: Float[Tensor, "b 1 1 K"] | None,
        cache: CacheLayerMixin,
    ) -> Float[Tensor, "b H"]:
        heads = self.attention_input(normalised(states, self.before_attention))
        heads = heads.unflatten(-1, (-1, self.width))
        states = states + self.attention_output(self.attend(heads, rotation, bias, cache))
        gate, up = self.mlp_input(normalised(states, self.before_mlp)).chunk(2, -1)
        return states + self.mlp_output(self.activation(gate) * up)

    def attend(
        self,
        heads: Float[Tensor, "b heads D"],
        rotation: Rotation,
        bias: Float[Tensor, "b 1 1 K"] | None,
        cache: CacheLayerMixin,
    ) -> Float[Tensor, "b _"]:
        """From queries, keys and values, side by side, to what the queries find."""
        rotated, values = heads.split((self.num_heads + self.num_key_heads, self.num_key_heads), 1)
        if self.norms[0] is not None:
            parts = rotated.split((self.num_heads, self.num_key_heads), 1)
            rotated = torch.cat([*map(normalised, parts, self.norms)], 1)
        rotated = rotate(rotated, rotation)
        queries, keys = rotated.split((self.num_heads, self.num_key_heads), 1)
        keys, values = cache.update(keys[:, :, None], values[:, :, None])
        # queries that share keys stand where further positions would: nothing is repeated
        queries = queries.unflatten(1, (self.num_key_heads, -1))
        if bias is not None:
            # a sliding window has forgotten what came before; kernels want aligned rows
            bias = bias[..., -keys.shape[-2] :].contiguous()
        found = scaled_dot_product_attention(queries, keys, values, bias, scale=self.scale)
        return found.flatten(1)


def as_one(
    modules: list[nn.Module], merged: Collection[nn.Module]
) -> Callable[[Float[Tensor, "b _"]], Float[Tensor, "b _"]]:
    """The outputs of several linear modules for one input, side by side."""
    if not all(module in merged for module in modules):
        return lambda inputs: torch.cat([module(inputs) for module in modules], -1)
    bases = [module.get_base_layer() for module in modules]
    weight = torch.cat([base.weight for base in bases])
    for base, part in zip(bases, weight.split([base.out_features for base in bases]), strict=True):
        base.weight.data = part
    biases = [base.bias for base in bases]
    bias = None if None in biases else torch.cat(biases)
    return lambda inputs: linear(inputs, weight, bias)


def normalised(states: Float[Tensor, "... n"], norm: nn.Module) -> Float[Tensor, "... n"]:
    """What Transformers' RMSNorm makes of them; in 16 bits rounded before the weight as well."""
    return norm.weight * rms_norm(states, norm.weight.shape, None, norm.variance_epsilon)


def rotate(heads: Float[Tensor, "b heads D"], rotation: Rotation) -> Float[Tensor, "b heads D"]:
    """Each pair (x_i, x_{i + D/2}) by its angle."""
    cosines, sines = rotation
    return torch.addcmul(heads * cosines, heads.roll(heads.shape[-1] // 2, -1), sines)


def attention_bias(step: DecodeStep, dtype: torch.dtype) -> Float[Tensor, "b 1 1 K"] | None:
    """0 at tokens, -inf at padding; None where there is none."""
    if step.attention_mask is None:
        return None
    padding = step.attention_mask[:, None, None] == 0
    return torch.zeros_like(padding, dtype=dtype).masked_fill_(padding, -torch.inf)


# --- where it may be used ---------------------------------------------------------------------


@torch.no_grad()
def is_plain(network: Network, merge: bool) -> bool:
    """`PlainDecoder` says of this network what its modules say, to 2e-6 of the largest log-prob (in
    16 bits to what their rounding may do)."""
    if network.sharded is not None or not has_known_parts(decoder(network.model)):
        return False
    training = network.model.training
    network.eval()
    try:
        with network.merged(merge) as merged:
            theirs = _log_probs(network, lambda step: network(step, "next_logits"))
            ours = _log_probs(network, PlainDecoder(network, merged))
    finally:
        network.train(training)
    tolerance = 0.05 if network.in_16_bits else 2e-6
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


def has_known_parts(model: nn.Module) -> bool:
    """The decoder is one of `LLAMA_LIKE`, and nothing but its linear layers was exchanged."""
    if type(model) not in LLAMA_LIKE:
        return False
    parts = [model.norm, model.rotary_emb]
    for layer in model.layers:
        attention = layer.self_attn
        parts += [layer, attention, layer.mlp, layer.input_layernorm]
        parts.append(layer.post_attention_layernorm)
        parts += [
            getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)
        ]
    return all(type(part).__module__ == type(model).__module__ for part in parts)


def _log_probs(
    network: Network, decode: Callable[[DecodeStep], Float[Tensor, "b V"]]
) -> Float[Tensor, "b t V"]:
    """Behind each of a few random tokens that follow prompts of several lengths."""
    ids = random_ids(network, len(PROMPT_LENGTHS))
    prompts = [row[:n] for row, n in zip(ids.tolist(), PROMPT_LENGTHS, strict=True)]
    shared = SharedPrompts.build(prompts, ids.device)
    step = shared.first_step(network.decoder_config)
    network(step, "next_logits")
    select_rows(step.cache, shared.of_row)
    mask, found = shared.row_mask, []
    for t in range(2):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = (shared.row_lengths + t)[:, None]
        step = DecodeStep(ids.gather(1, positions), mask, positions, step.cache)
        found.append(decode(step).float().log_softmax(-1))
    return torch.stack(found, 1)
