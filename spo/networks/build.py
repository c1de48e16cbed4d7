"""Names and loaded modules -> policy, critic and reference networks.

Under LoRA all three live on one frozen base, 4-bit or not: the policy is the base with the
adapter "default", the critic the base with the adapter "critic" and a value head, the reference
the base with no adapter (or, where training continues an adapter, with a frozen copy of it).
Under full fine-tuning each is a model of its own.
"""

import copy
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from spo import launch
from spo.config import SPOConfig
from spo.networks.checks import (
    check_attention,
    check_decoder_only,
    check_frozen_base,
    check_router,
    check_scaled_gradients,
    check_second_adapter,
    check_vocabulary,
)
from spo.networks.dropout import base_modules, silence_dropout
from spo.networks.loading import (
    check_scans,
    check_target_modules,
    check_value_model,
    is_adapter,
    load_critic,
    load_policy,
    spare_layers,
)
from spo.networks.network import Network, Numerics, decoder, transformer
from spo.networks.probe import changes_nothing, probe_critic, probe_policy
from spo.networks.sharding import ShardedModel

POLICY, CRITIC, REFERENCE = "default", "critic", "reference"
"""Adapter names. PEFT saves "default" at the top of the folder, as everyone expects."""

HEAD_NAMES = ("score", "classifier", "v_head", "value_head")
"""Where sequence-classification and reward models keep their last layer."""


def build_networks(
    model: str | PreTrainedModel | PeftModel,
    value_model: Any,
    args: SPOConfig,
    processing_class: Any,
    device: torch.device,
    peft_config: PeftConfig | None = None,
    quantization_config: Any = None,
) -> tuple[Network, Network | None, Network | None]:
    """Policy, reference (None when beta = 0) and critic (None without one) on the device.

    Of a policy given by name, weights are of `base_dtype`, unless `model_init_kwargs` says
    otherwise.
    """
    if isinstance(model, str):
        frozen = peft_config is not None or is_adapter(model)
        kwargs = {"dtype": base_dtype(args, frozen)}
        if quantization_config is not None:
            kwargs |= {"quantization_config": quantization_config, "device_map": {"": device}}
        model = load_policy(model, **kwargs | (args.model_init_kwargs or {}))
    check_vocabulary(model, processing_class)
    numerics = Numerics(args.mixed_precision, args.temperature, args.logits_chunk_size)
    policy = build_policy(model if is_quantized(model) else model.to(device), peft_config, numerics)
    equal_on_all_processes(policy)
    reference = build_reference(policy) if args.beta else None
    critic = build_critic(value_model, policy, args, processing_class)
    if critic is not None:
        equal_on_all_processes(critic)
    for network in filter(None, (policy, critic)):
        if args.fp16:
            check_scaled_gradients(network.trainable)
        if args.mixed_precision != "no":
            leave_inputs_in_16_bits(network.model)
        if args.gradient_checkpointing:
            enable_gradient_checkpointing(transformer(network.model))
    plan = launch.sharding()
    if plan is not None:
        shard([network for network in (policy, reference, critic) if network is not None], plan)
    return policy, reference, critic


def shard(networks: Sequence[Network], plan: launch.Sharding) -> None:
    """Cut the weights over the processes, once where networks share a model."""
    models: dict[int, ShardedModel] = {}
    for network in networks:
        model = transformer(network.model)
        if id(model) not in models:
            models[id(model)] = ShardedModel(model, adapter_parameters(network.model), plan)
        network.sharded = models[id(model)]
        network.forward = network.sharded.around(network.forward)
        if network.adapter is None:  # the weights themselves, which are others now
            network.trainable = trainable_parameters(network.model)


def adapter_parameters(model: PreTrainedModel | PeftModel) -> set[nn.Parameter]:
    """What PEFT put beside the model's own weights, trained at present or not."""
    if not isinstance(model, PeftModel):
        return set()
    base = {p for module in base_modules(model) for p in module.parameters(recurse=False)}
    return {p for p in model.parameters() if p.requires_grad or p not in base}


def base_dtype(args: SPOConfig, frozen: bool) -> torch.dtype:
    """Of weights loaded by name: what is trained is float32, a frozen base what is computed in."""
    return getattr(torch, args.compute_dtype) if frozen else torch.float32


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """By the name newer Transformers give it, or the one before."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def leave_inputs_in_16_bits(model: nn.Module) -> None:
    """Under autocast PEFT need not cast its inputs to the adapter's float32.

    The products run in 16 bits anyway, and the copies would stay alive until the backward pass.
    """
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def keep_4_bit_layout(model: nn.Module) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights on CPUs with AVX512-BF16.

    It does so at the first forward pass in eval mode, into a layout whose product has no gradient;
    training would go wrong without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            state = getattr(module.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise ValueError(
                    "The 4-bit model has been used for inference on the CPU, which repacked its "
                    "weights into a form without gradient; load it anew and train it first."
                )


# --- building the three networks -------------------------------------------------------------


def build_policy(
    model: PreTrainedModel | PeftModel,
    peft_config: PeftConfig | None = None,
    numerics: Numerics | None = None,
) -> Network:
    """The trained policy; `peft_config` puts a fresh adapter on a plain model."""
    keep_4_bit_layout(model)
    numerics = numerics or Numerics()
    check_attention(transformer(model), numerics.mixed_precision)
    check_decoder_only(transformer(model).config, type(transformer(model)).__name__)
    check_router(transformer(model).config)
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ValueError("The model already carries an adapter; leave peft_config out.")
        check_target_modules(model, peft_config)
        model = get_peft_model(model, spare_layers(model, peft_config))
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ValueError("Prompt-learning adapters have no weights in the decoder; use LoRA.")
        if set(model.peft_config) != {POLICY}:
            raise ValueError(
                f"Adapters {list(model.peft_config)}: give a model with one, 'default'."
            )
        model.set_adapter(POLICY)
    elif is_quantized(model):
        raise ValueError(
            "Quantised weights cannot be trained; add LoRA (--use_peft, or a peft_config)."
        )
    if isinstance(transformer(model).get_output_embeddings(), BaseTunerLayer):
        raise ValueError(
            "The adapter changes the vocabulary head, which SPO's chunked log-probs read without "
            "it; take the head out of the LoRA targets."
        )
    check_scans(model)
    say_silenced(model, "policy")
    policy = Network(
        model,
        transformer(model).get_output_embeddings(),
        POLICY if isinstance(model, PeftModel) else None,
        trainable_parameters(model),
        numerics,
    )
    policy.logit_transform = probe_policy(policy)
    if any(parameter.dtype.itemsize == 2 for parameter in policy.trainable):
        warnings.warn(
            f"The trained weights are {policy.trainable[0].dtype}: a step that moves a weight by "
            "less than about a 500th of itself is rounded away, most of them at rates below 1e-5; "
            "load the model in float32.",
            stacklevel=2,
        )
    return policy


def build_reference(policy: Network) -> Network:
    """The frozen policy that KL is measured against: the base alone wherever that is possible."""
    kwargs = {"numerics": policy.numerics, "logit_transform": policy.logit_transform}
    if policy.adapter is None:
        frozen = copy.deepcopy(policy.model).requires_grad_(False).eval()
        return Network(frozen, frozen.get_output_embeddings(), **kwargs)
    check_frozen_base(policy.model.peft_config[POLICY], "the reference (beta > 0) shares")
    if not changes_nothing(policy):
        check_second_adapter(policy.model.peft_config[POLICY])
        add_frozen_copy(policy.model, POLICY, REFERENCE)
        return Network(policy.model, policy.head, REFERENCE, **kwargs)
    return Network(policy.model, policy.head, "", **kwargs)


def build_critic(
    value_model: Any, policy: Network, args: SPOConfig, processing_class
) -> Network | None:
    """The critic from what a person may give: None, "policy", a path or hub id, a module."""
    if value_model is None:
        return None
    if not isinstance(value_model, str):
        check_value_model(transformer(value_model).config, processing_class)
        quantized = is_quantized(value_model)
        value_model = value_model if quantized else value_model.to(policy.device)
        return critic_network(value_model, policy.numerics)
    if value_model == "policy":
        return critic_from_policy(policy, args)
    if is_adapter(value_model) and policy.adapter is not None:
        return load_shared_critic(policy, value_model)
    frozen = args.value_use_peft or is_adapter(value_model)
    dtype = transformer(policy.model).dtype if frozen else torch.float32
    critic = load_critic(value_model, args, processing_class, dtype, policy.device)
    return critic_network(critic, policy.numerics)


def critic_from_policy(policy: Network, args: SPOConfig) -> Network:
    """The policy's weights with a zero value head, so that V = 0 at first.

    Under LoRA a second adapter on the last layers of the same frozen base (`value_layers`); else a
    copy of the whole decoder.
    """
    if policy.adapter is None:
        return critic_network(_copy_as_value_model(policy.model), policy.numerics)
    config = copy.deepcopy(policy.model.peft_config[POLICY])
    check_frozen_base(config, "the critic shares")
    config.modules_to_save = None  # trained whole they are the policy's
    if isinstance(config, LoraConfig):
        config.target_parameters = None  # experts: PEFT puts one adapter on them, the policy's
        config.target_modules = _targets_in_critic_layers(transformer(policy.model), args)
    policy.model.add_adapter(CRITIC, config)
    width = transformer(policy.model).config.get_text_config().hidden_size
    head = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(head.weight)
    return _shared_critic(policy, head)


def _targets_in_critic_layers(model: PreTrainedModel, args: SPOConfig) -> list[str]:
    """Full names of the policy's adapted modules that the critic adapts, too."""
    layers = args.critic_layers(model.config.get_text_config().num_hidden_layers)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, ParamWrapper)
    ]
    layer_of = {name: re.search(r"\.(\d+)\.", name) for name in names}
    chosen = [n for n in names if layer_of[n] is not None and int(layer_of[n][1]) in layers]
    return chosen or names


def load_shared_critic(policy: Network, name: str) -> Network:
    """A critic adapter that `save_model` wrote, back on the policy's base."""
    own, saved = policy.model.peft_config[POLICY], PeftConfig.from_pretrained(name)
    if saved.base_model_name_or_path != own.base_model_name_or_path:
        raise ValueError(
            f"The critic adapter in {name} belongs to {saved.base_model_name_or_path!r}, not to "
            f"{own.base_model_name_or_path!r}."
        )
    state = load_peft_weights(name, device="cpu")
    weight = next(state.pop(key) for key in list(state) if key.endswith("score.weight"))
    saved.task_type, saved.modules_to_save = own.task_type, None
    policy.model.add_adapter(CRITIC, saved)
    set_peft_model_state_dict(policy.model, state, adapter_name=CRITIC)
    head = nn.Linear(weight.shape[1], 1, bias=False)
    head.weight.data.copy_(weight)
    return _shared_critic(policy, head)


def _shared_critic(policy: Network, head: nn.Linear) -> Network:
    """The adapter "critic" of the policy's model with its value head."""
    head.to(policy.model.device)
    policy.model.set_adapter(CRITIC)
    parameters = (*trainable_parameters(policy.model), *head.parameters())
    policy.model.set_adapter(POLICY)
    return Network(policy.model, head, CRITIC, parameters, policy.numerics)


def critic_network(
    value_model: PreTrainedModel | PeftModel, numerics: Numerics | None = None
) -> Network:
    """A critic of its own from a sequence-classification or reward model.

    What is trained beside a frozen base is held in float32, its head, too.
    """
    keep_4_bit_layout(value_model)
    inner, numerics = transformer(value_model), numerics or Numerics()
    check_attention(inner, numerics.mixed_precision)
    check_decoder_only(inner.config, type(inner).__name__)
    heads = [getattr(inner, name) for name in HEAD_NAMES if hasattr(inner, name)]
    if not heads or not hasattr(heads[0], "weight"):
        raise ValueError(
            f"{type(inner).__name__} has no value head ({', '.join(HEAD_NAMES)}) with one output; "
            "give an AutoModelForSequenceClassification with num_labels=1."
        )
    if heads[0].weight.shape[0] != 1:
        raise ValueError(f"The critic's head has {heads[0].weight.shape[0]} outputs, it needs 1.")
    if is_quantized(value_model) and not isinstance(value_model, PeftModel):
        raise ValueError("A quantised critic cannot be trained without LoRA (--value_use_peft).")
    adapter = None
    if isinstance(value_model, PeftModel):
        adapter = value_model.active_adapter
        for parameter in trainable_parameters(value_model):
            parameter.data = parameter.data.float()
    check_scans(value_model)
    say_silenced(value_model, "critic")
    critic = Network(value_model, heads[0], adapter, trainable_parameters(value_model), numerics)
    probe_critic(critic)
    return critic


def _copy_as_value_model(policy: PreTrainedModel) -> PreTrainedModel:
    """A sequence-classification model with the policy's decoder weights and a zero head."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    except ValueError as error:
        raise ValueError(
            f"Transformers has no sequence-classification form of {type(policy).__name__}, which a "
            "critic made from the policy needs; use LoRA, or give a value model."
        ) from error
    decoder(model).load_state_dict(decoder(policy).state_dict())
    head = next(getattr(model, name) for name in HEAD_NAMES if hasattr(model, name))
    nn.init.zeros_(head.weight)
    return model.to(policy.device)


def is_quantized(model: PreTrainedModel | PeftModel) -> bool:
    return getattr(transformer(model), "is_quantized", False)


def say_silenced(model: nn.Module, name: str) -> None:
    """Take the base's dropout out, and say so."""
    silenced = silence_dropout(model)
    if silenced:
        PartialState().print(
            f"Dropout of the {name}'s base is off, so that it says the same when it is updated as "
            f"when it is scored ({', '.join(silenced)} = 0)."
        )


def equal_on_all_processes(network: Network) -> None:
    """Process 0's trained weights for all: a loaded module may hold a head drawn at random."""
    for parameter in network.trainable:
        broadcast(parameter.data)


def trainable_parameters(model: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(p for p in model.parameters() if p.requires_grad)


def add_frozen_copy(model: PeftModel, source: str, name: str) -> None:
    """A second adapter with the weights of the first; never trained."""
    model.add_adapter(name, copy.deepcopy(model.peft_config[source]))
    state = get_peft_model_state_dict(model, adapter_name=source)
    set_peft_model_state_dict(model, state, adapter_name=name)
    model.set_requires_grad(name, requires_grad=False)
