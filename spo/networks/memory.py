"""A model's config and the flags of a run -> its peak memory by part, without loading weights.

The model is built on the meta device, where tensors have shapes but no storage. Weights and
adapters are counted there; `spo.networks.graph` counts what a micro-batch's graph keeps.
"""

import copy
import warnings
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedConfig

from spo.config import SPOConfig
from spo.networks.build import base_dtype, trainable_parameters
from spo.networks.engine_memory import EngineMemory, engine_memory
from spo.networks.graph import graph_bytes, meta_model
from spo.networks.loading import load_config, lora_config, of_any_file
from spo.networks.network import decoder, transformer
from spo.networks.prefill import ROOM

GIB = 2**30
CARD_SIZES = (8, 12, 16, 24, 48, 80)
"""GiB of common cards."""

CARD_RESERVE = 0.9
"""GiB of a card that its driver's context, the display and fragmentation take."""

FREE_RESERVE = 0.4
"""GiB of a card's free memory, which is without the first two, that fragmentation takes."""

OPTIMIZER_BYTES = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_8bit": 2.1,
    "paged_adamw_8bit": 2.1,
    "adafactor": 0.1,
}
"""Bytes of state per trained parameter."""

BLOCK = 64
"""Weights that share one quantisation constant in bitsandbytes' 4-bit types."""


TOLERANCE = 0.15
"""How far measured peaks may be from the estimate."""

REMEDIES = {
    "weights": "use --load_in_4bit with --use_peft, or a smaller model",
    "reference_and_critic": "use --use_peft, which keeps one base for policy, critic and reference",
    "gradients": "use --use_peft, or a smaller --lora_r",
    "optimizer": "use --optim adamw_8bit, or --use_peft",
    "generation": "lower --per_device_generation_batch_size, or set --merge_adapter false",
    "activations": "use --gradient_checkpointing, or lower --max_tokens_per_micro_batch",
    "logits": "lower --logits_chunk_size",
    "engine": "add --vllm_enable_sleep_mode, or start a server elsewhere (--vllm_mode server)",
}
"""By the part that is largest."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. The first five are there all the time, of the others only the largest phase."""

    weights: float
    reference_and_critic: float
    adapters: float
    gradients: float
    optimizer: float
    generation: float
    activations: float
    logits: float
    vllm: EngineMemory | None = None

    @property
    def engine(self) -> float:
        """What vLLM needs at least where it runs beside the trainer."""
        return self.vllm.needed if self.vllm else 0.0

    @property
    def resident(self) -> float:
        """What is there in every phase."""
        parts = (self.weights, self.reference_and_critic, self.adapters, self.optimizer)
        return sum(parts)

    @property
    def peak(self) -> float:
        """The larger of the two phases: sampling, and the update."""
        return self.peak_on(0)

    def peak_on(self, card_bytes: float) -> float:
        """The same on a card of this size, of which vLLM takes its share."""
        update = self.gradients + self.activations + self.logits
        if self.vllm:
            return self.vllm.peak(self.resident, update, card_bytes)
        return self.resident + max(self.generation, update)

    def check_card(self, free_bytes: float) -> None:
        """Raise where the plan is beyond what a card has free by more than the estimate may err;
        warn where it may not fit."""
        peak = self.peak_on(free_bytes)
        excess = peak + FREE_RESERVE * GIB - free_bytes
        if excess <= 0:
            return
        message = (
            f"The plan needs about {(peak / GIB + FREE_RESERVE):.1f} GiB, this card has "
            f"{free_bytes / GIB:.1f} free: {excess / GIB:.1f} too little; {self._remedy()}."
        )
        if excess > TOLERANCE * peak:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)

    def _fits(self, card_bytes: float) -> bool:
        has_share = self.vllm is None or self.vllm.fits_its_share(card_bytes)
        return has_share and self.peak_on(card_bytes) + CARD_RESERVE * GIB <= card_bytes

    def _remedy(self) -> str:
        """What shrinks the largest part."""
        sizes = {name: getattr(self, name) for name in REMEDIES}
        return REMEDIES[max(sizes, key=sizes.__getitem__)]

    def table(self) -> str:
        """By part, and which cards it fits."""
        rows = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "vllm"]
        if self.vllm:
            rows.append(("vLLM, at least", self.engine))
        rows.append(("peak (estimate)", self.peak))
        lines = [f"{name.replace('_', ' '):22}{size / GIB:8.2f} GiB" for name, size in rows]
        fits = [f"{size} GB" for size in CARD_SIZES if self._fits(size * GIB)]
        lines.append(f"fits cards of: {', '.join(fits) or 'none of ' + str(CARD_SIZES)}")
        return "\n".join(lines)


def estimate_run(
    model_name: str,
    args: SPOConfig,
    peft_config: LoraConfig | None,
    *,
    bits: int | None,
    nested: bool,
    loading: dict[str, Any],
) -> MemoryEstimate:
    """`estimate_memory` of a policy and critic by name; prompts are taken at `max_prompt_length`,
    512 if that is not set, and `loading` are the arguments of from_pretrained."""
    config, adapter = load_config(model_name, **of_any_file(loading))
    value_config = None
    if args.wants_value_network and args.value_model_path != "policy":
        value_config, value_adapter = load_config(args.value_model_path, "value model")
        if value_adapter is not None and (adapter or peft_config):  # on the policy's base
            value_config = None
    dtype = loading.get("dtype")
    if isinstance(dtype, str):
        dtype = config.dtype if dtype == "auto" else getattr(torch, dtype)
    return estimate_memory(
        config,
        args,
        prompt_length=args.max_prompt_length or 512,
        peft_config=adapter or peft_config,
        bits=bits,
        nested=nested,
        weight_dtype=dtype,
        value_config=value_config,
    )


def estimate_memory(
    model_config: PreTrainedConfig,
    args: SPOConfig,
    *,
    prompt_length: int,
    peft_config: LoraConfig | None = None,
    bits: int | None = None,
    nested: bool = False,
    weight_dtype: torch.dtype | None = None,
    value_config: PreTrainedConfig | None = None,
) -> MemoryEstimate:
    """Predict the peak of one process.

    Args:
        model_config: of the policy; its weights are never read.
        prompt_length: tokens of the longest prompt; completions are taken at full length.
        peft_config: the LoRA settings, None for full fine-tuning.
        bits: 4 or 8 for a quantised base; `nested`: 4-bit with double quantisation.
        weight_dtype: of a base that is not quantised; None: as SPOTrainer chooses.
        value_config: of a critic that is a model of its own, as `args.value_model_path` names it.

    Raises:
        UnpredictableModelError: the architecture does not run without its weights.
    """
    frozen = peft_config is not None
    compute_dtype = getattr(torch, args.compute_dtype)
    weight_dtype = weight_dtype or base_dtype(args, frozen)
    model = meta_model(model_config, weight_dtype)
    base_weights = _weight_bytes(model, bits, nested, weight_dtype.itemsize)
    if frozen:
        model = get_peft_model(model, copy.deepcopy(peft_config))
    trained = sum(p.numel() for p in trainable_parameters(model))
    length = prompt_length + args.max_completion_length
    activations = _activation_bytes(model, args, prompt_length, bits)

    of_critic = _critic_cost(model, value_config, args, weight_dtype, prompt_length, frozen)
    extra = of_critic.own_weights
    if not frozen:
        extra += base_weights * (args.beta > 0)
    # autocast keeps a 16-bit copy of one network's weights in its pass
    if compute_dtype.itemsize == 2 and not frozen:
        extra += trained * 2
    generation = _generation_bytes(model_config, args, length, compute_dtype.itemsize)
    if frozen and bits is None and args.merge_adapter:
        generation += _merged_bytes(model, weight_dtype.itemsize)
    return MemoryEstimate(
        weights=base_weights,
        reference_and_critic=extra,
        adapters=4.0 * (of_critic.in_adapters + (trained if frozen else 0)),
        gradients=4.0 * (trained + of_critic.trained),
        optimizer=OPTIMIZER_BYTES[args.optim] * (trained + of_critic.trained),
        generation=0.0 if args.use_vllm else generation,
        activations=max(activations, of_critic.activations),
        logits=_logits_bytes(model_config, args, compute_dtype.itemsize),
        vllm=engine_memory(model, args, base_weights if bits == 4 else None, length),
    )


@dataclass(frozen=True)
class _CriticCost:
    """What a critic adds: bytes of weights of its own and of activations, and numbers that are
    trained, in all and in adapters."""

    own_weights: float = 0.0
    activations: float = 0.0
    trained: float = 0.0
    in_adapters: float = 0.0


def _critic_cost(
    policy: nn.Module,
    value_config: PreTrainedConfig | None,
    args: SPOConfig,
    base_dtype: torch.dtype,
    prompt_length: int,
    frozen: bool,
) -> _CriticCost:
    if value_config is not None:
        return _separate_critic(value_config, args, base_dtype, prompt_length)
    if not args.wants_value_network:
        return _CriticCost()
    if not frozen:  # a copy of the decoder
        copied = sum(p.numel() for p in decoder(policy).parameters())
        return _CriticCost(own_weights=copied * base_dtype.itemsize, trained=copied)
    num_layers = transformer(policy).config.get_text_config().num_hidden_layers
    trained = sum(p.numel() for p in trainable_parameters(policy))
    trained *= len(args.critic_layers(num_layers)) / num_layers
    return _CriticCost(trained=trained, in_adapters=trained)  # on the policy's base


def _separate_critic(
    config: PreTrainedConfig, args: SPOConfig, base_dtype: torch.dtype, prompt_length: int
) -> _CriticCost:
    dtype = base_dtype if args.value_use_peft else torch.float32
    critic = meta_model(config, dtype, critic=True)
    weights = _weight_bytes(critic, args.value_bits, True, dtype.itemsize)
    if args.value_use_peft:
        config = lora_config(args.value_lora_r, args.value_lora_alpha, task_type="SEQ_CLS")
        critic = get_peft_model(critic, config)
    trained = sum(p.numel() for p in trainable_parameters(critic))
    return _CriticCost(
        own_weights=weights,
        activations=_activation_bytes(critic, args, prompt_length, args.value_bits),
        trained=trained,
        in_adapters=trained if args.value_use_peft else 0,
    )


def _weight_bytes(model: nn.Module, bits: int | None, nested: bool, itemsize: int) -> float:
    """Quantised linear layers of the decoder, everything else at its own size."""
    total = float(sum(p.numel() for p in model.parameters()) * itemsize)
    if bits is None:
        return total
    per_weight = {8: 1.0, 4: 0.5 + (1 + 4 / 256 if nested else 4) / BLOCK}[bits]
    for module in decoder(model).modules():
        if isinstance(module, nn.Linear):
            total -= module.weight.numel() * (itemsize - per_weight)
    return total


def _generation_bytes(config: PreTrainedConfig, args: SPOConfig, length: int, itemsize: int):
    """Key-value cache of the rows in flight, and their logits with what sampling makes of them."""
    config = config.get_text_config()
    rows = args.per_device_generation_batch_size or args.rollout_batch_size()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    one_layer = 2 * heads * head_dim * itemsize * rows * length
    cache = one_layer * (config.num_hidden_layers * (1 + ROOM) + 1)  # one is copied as it grows
    return cache + rows * config.vocab_size * (itemsize + 5 * 4)


def _merged_bytes(model: nn.Module, itemsize: int) -> float:
    """The second copy of the layers that carry adapters."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return sum(layer.get_base_layer().weight.numel() * itemsize for layer in layers)


def _micro_batch_rows(args: SPOConfig, length: int) -> int:
    if args.max_tokens_per_micro_batch is None:
        return args.per_device_train_batch_size
    return max(1, args.max_tokens_per_micro_batch // length)


def _activation_bytes(
    model: nn.Module, args: SPOConfig, prompt_length: int, bits: int | None
) -> float:
    """What one micro-batch's forward pass saves, and the working set of its backward pass.

    With gradient checkpointing a layer's own graph, recomputed, comes on top, when what stood
    behind the layers has gone.
    """
    length = prompt_length + args.max_completion_length
    rows = _micro_batch_rows(args, length)
    shape = (rows, prompt_length, args.max_completion_length)
    config = transformer(model).config.get_text_config()
    saved = graph_bytes(model, args, *shape)
    working = _layer_working_set(config, args, rows * length, bits)
    if not args.gradient_checkpointing:
        return saved.total + working
    whole = graph_bytes(model, replace(args, gradient_checkpointing=False), *shape)
    one_layer = (whole.total - saved.total) / config.num_hidden_layers
    return max(saved.total, saved.total - saved.behind_layers + one_layer + working)


def _layer_working_set(
    config: PreTrainedConfig, args: SPOConfig, tokens: int, bits: int | None
) -> float:
    """Of the backward pass of one layer: gradients of its activations, less what they set free on
    the way, and dequantised weights."""
    itemsize = getattr(torch, args.compute_dtype).itemsize
    hidden, intermediate = _widths(config)
    dequantised = intermediate * hidden * itemsize if bits else 0
    return tokens * (intermediate + 2 * hidden) * itemsize + dequantised


def _widths(config: PreTrainedConfig) -> tuple[int, int]:
    """Of the hidden states and inside the MLP, which not every family calls the same."""
    names = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
    known = (getattr(config, name, None) for name in names)
    return config.hidden_size, next(filter(None, known), 4 * config.hidden_size)


def _logits_bytes(config: PreTrainedConfig, args: SPOConfig, itemsize: int) -> float:
    """The logits of one chunk of tokens in float32, their softmax in the same memory, and either
    of them in the type of the products."""
    vocab_size = config.get_text_config().vocab_size
    return args.logits_chunk_size * vocab_size * (4 + itemsize)
