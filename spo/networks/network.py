"""`Network`: a decoder and the head that reads it, and the one forward pass into both.

Under LoRA policy, critic and reference are three networks on one model: `active` switches the
adapter. Three things happen here and nowhere else: the decoder runs, the causal shift is made
(`states_before_tokens`), and a head is applied.

Axes: b rows of a micro-batch, S prompt + completion positions, T completion tokens, N completion
tokens of all rows laid end to end, H hidden width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from spo.networks.batching import MicroBatch
from spo.networks.logits import PLAIN, LogitTransform
from spo.networks.logprobs import token_logprobs, token_logprobs_and_entropies
from spo.networks.prefill import DecodeStep, cache_argument, empty_cache, is_recurrent, select_rows
from spo.networks.sharding import ShardedModel

Want = Literal["logprobs", "logprobs_and_entropies", "values", "next_logits"]


@dataclass(frozen=True)
class Numerics:
    """How a network computes.

    Attributes:
        mixed_precision: Accelerate's name of the autocast type: "no", "fp16" or "bf16".
        temperature: of log-probs and entropies.
        logits_chunk_size: tokens whose logits exist at one time.
    """

    mixed_precision: str = "no"
    temperature: float = 1.0
    logits_chunk_size: int = 256


class Network(nn.Module):
    """A decoder, the head that reads its states, and the adapter that makes it this network.

    Attributes:
        model: the whole model; several networks may share one.
        head: vocabulary head or value head, applied to states of width H.
        adapter: PEFT adapter to switch on; "" switches all of them off; None: none exist.
        trainable: what the optimizer trains.
        logit_transform: what the model does to the numbers of a vocabulary head.
        sharded: the model's weights, where they are cut over the processes.
        max_scored_tokens: padded tokens of one pass without gradient that memory is known to have
            room for; None: it never ran out.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        head: nn.Module,
        adapter: str | None = None,
        trainable: tuple[nn.Parameter, ...] = (),
        numerics: Numerics | None = None,
        logit_transform: LogitTransform = PLAIN,
    ):
        super().__init__()
        self.model, self.head, self.adapter, self.trainable = model, head, adapter, trainable
        self.numerics, self.logit_transform = numerics or Numerics(), logit_transform
        self.sharded: ShardedModel | None = None
        self.max_scored_tokens: int | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def decoder_config(self) -> PreTrainedConfig:
        """What a key-value cache is laid out by."""
        return decoder(self.model).config

    @property
    def in_16_bits(self) -> bool:
        """Its products are, whatever its weights are kept in."""
        is_mixed = self.numerics.mixed_precision != "no"
        return is_mixed or transformer(self.model).dtype.itemsize == 2

    @property
    def can_share_prompts(self) -> bool:
        """A prompt may be computed once for several completions, forward and backward; FSDP2 knows
        one forward pass per backward pass."""
        if self.sharded is not None:
            return False
        takes_cache = cache_argument(decoder(self.model)) is not None
        return takes_cache and not is_recurrent(empty_cache(self.decoder_config))

    @property
    def has_dropout(self) -> bool:
        """A pass in training mode differs from one in evaluation mode."""
        return any(isinstance(module, nn.Dropout) and module.p for module in self.model.modules())

    def forward(
        self, batch: MicroBatch | DecodeStep, want: Want
    ) -> Float[Tensor, "b T"] | tuple[Float[Tensor, "b T"], ...] | Float[Tensor, "b V"]:
        """What is wanted of each completion token, zero on padding; in float32.

        "logprobs": log π(y_t | s_t); "logprobs_and_entropies": both, without gradient; "values":
        V(s_t); "next_logits": of a `DecodeStep`, the logits behind its last token.
        """
        if want == "next_logits":
            # one product of two matrices: behind a slice of three dimensions the head's weight
            # would be copied for every row
            return self.next_logits(batch.run(decoder(self.model))[:, -1].contiguous())
        states = hidden_states(decoder(self.model), batch)
        if want == "values":
            return batch.to_rows(token_values(self.head, states))
        numerics = self.numerics
        inputs = (states, self.head, batch.targets)
        inputs += (numerics.temperature, numerics.logits_chunk_size, self.logit_transform)
        if want == "logprobs":
            return batch.to_rows(token_logprobs(*inputs))
        return tuple(map(batch.to_rows, token_logprobs_and_entropies(*inputs)))

    def next_logits(self, last_states: Float[Tensor, "b H"]) -> Float[Tensor, "b V"]:
        """What the vocabulary head makes of the state of each row's last token."""
        return self.logit_transform(self.head(last_states.to(self.head.weight.dtype)))

    def autocast(self):
        """The context of mixed precision, entered around one forward pass, or around many: the
        16-bit copies of weights live as long as it."""
        dtypes = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
        dtype = dtypes[self.numerics.mixed_precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Switch this network on; afterwards the adapter from before is on: whoever holds the
        model finds the policy."""
        before = self.model.active_adapter if self.adapter else self.adapter
        if before != self.adapter:
            self.model.set_adapter(self.adapter)
        off = self.model.disable_adapter() if self.adapter == "" else nullcontext()
        try:
            with off:
                yield
        finally:
            if before != self.adapter:
                self.model.set_adapter(before)

    def gathered(self):
        """The context of passes without gradient whose number may differ between processes; all of
        them enter and leave it together."""
        return nullcontext() if self.sharded is None else self.sharded.gathered()

    @contextmanager
    def merged(self, merge: bool = True) -> Iterator[list[BaseTunerLayer]]:
        """Switch this network on, under autocast, with its adapter merged into the weights where
        those are plain: a third of the products per layer and token, and no autocast where all is
        16 bits wide. Gives the layers that were merged.

        Merged weights are new tensors and the old ones come back untouched, so nothing drifts; at
        that time no activations take up memory.
        """
        with self.active(), self.gathered():
            layers = _mergeable_layers(self.model) if self.adapter and merge else []
            kept = [(p, p.data) for layer in layers for p in layer.get_base_layer().parameters()]
            half = transformer(self.model).dtype.itemsize == 2 and (layers or not self.adapter)
            try:
                for layer in layers:
                    _merge(layer, self.adapter)
                with nullcontext() if half else self.autocast():
                    yield layers
            finally:
                for parameter, data in kept:
                    parameter.data = data
                for layer in layers:
                    layer.merged_adapters.clear()
                    vars(layer).pop("forward", None)


def hidden_states(decoder: nn.Module, batch: MicroBatch) -> Float[Tensor, "N H"]:
    """Run the decoder (a model without its head) and keep the states before completion tokens."""
    if batch.prefixes is None:
        states = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        return states_before_tokens(states, batch)
    prompts = batch.prefixes.first_step(decoder.config)
    prompts.run(decoder)
    select_rows(prompts.cache, batch.prefixes.of_row)
    before = batch.prefixes.row_mask
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    here = torch.ones_like(batch.input_ids)
    completions = DecodeStep(
        batch.input_ids,
        None if before is None else torch.cat([before, here], 1),
        batch.prefixes.row_lengths[:, None] + positions,
        prompts.cache,
    )
    return states_before_tokens(completions.run(decoder), batch)


def states_before_tokens(
    hidden_states: Float[Tensor, "b S H"], batch: MicroBatch
) -> Float[Tensor, "N H"]:
    """The causal shift: the hidden state *before* each completion token is consumed.

    For token 0 that is the state at the prompt's last token.
    """
    return hidden_states[batch.row_of_token, batch.state_position]


def token_values(value_head: nn.Module, states: Float[Tensor, "N H"]) -> Float[Tensor, " N"]:
    """V(s_t) from the state before token t, in float32."""
    with torch.autocast(states.device.type, enabled=False):
        return value_head(states.to(value_head.weight.dtype)).squeeze(-1).float()


def _mergeable_layers(model: PeftModel) -> list[BaseTunerLayer]:
    """All layers that carry adapters, if each is a linear one with weights of its own; else none.

    Quantised weights would be rounded anew, tied ones are somebody else's, too, and the bias of an
    adapter (lora_bias) needs one to be added to.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    embeddings = transformer(model).get_input_embeddings().weight
    for layer in layers:
        base = layer.get_base_layer()
        biased = any(getattr(layer, "lora_bias", {}).values())
        if type(base) is not nn.Linear or base.weight is embeddings:
            return []
        if biased and base.bias is None:
            return []
    return layers


def _merge(layer: BaseTunerLayer, adapter: str) -> None:
    """Put new weights that hold the adapter in the place of the base's; until `forward` is deleted
    the layer is its base, without a way through the wrapper for every token."""
    base = layer.get_base_layer()
    if _is_plain_lora(layer, adapter):
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        scaling = layer.scaling[adapter]
        base.weight.data = torch.addmm(base.weight.data, up.data, down.data, alpha=scaling)
    else:
        for parameter in base.parameters():
            parameter.data = parameter.data.clone()
        layer.merge(adapter_names=[adapter])
    layer.forward = base.forward


def _is_plain_lora(layer: BaseTunerLayer, adapter: str) -> bool:
    """The adapter is W + s · B A and nothing else, in the type of the weights."""
    if type(layer) is not LoraLinear or adapter not in layer.lora_A:
        return False
    weights = (layer.get_base_layer(), layer.lora_A[adapter], layer.lora_B[adapter])
    plain = adapter not in layer.lora_variant and not layer.lora_bias[adapter]
    plain = plain and not layer.fan_in_fan_out
    return plain and len({part.weight.dtype for part in weights}) == 1


def transformer(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The Transformers model itself, adapters injected, without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def decoder(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The model without its head: ids -> last hidden states."""
    inner = transformer(model)
    base = inner.base_model
    # Llama 4's base_model_prefix names nothing in transformers 5.23, and this is the whole model
    return base if base is not inner else getattr(inner, "model", inner)
