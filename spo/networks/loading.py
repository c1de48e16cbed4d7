"""Paths, hub ids and flags -> tokenizers and modules. What can be checked is checked before
weights are read.
"""

import copy
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import find_adapter_config_file

from spo.config import SPOConfig
from spo.launch import sharding
from spo.networks.checks import check_causal_config

SCANNED = ("conv1d", "x_proj", "dt_proj", "out_proj")


def load_tokenizer(name: str, **kwargs: Any):
    """The tokenizer of a model folder or hub id; a missing pad token becomes the end token.

    Masks are built from lengths, so sharing the two is harmless here.
    """
    tokenizer = _load(AutoTokenizer.from_pretrained, name, "tokenizer", **kwargs)
    return with_pad_token(tokenizer)


def with_pad_token(tokenizer):
    """The tokenizer with pad = end where it had no pad token."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                "The tokenizer has neither a pad nor an end token; set processing_class.eos_token."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def resolve_tokenizer(
    model: str | PreTrainedModel | PeftModel,
    processing_class: Any,
    model_init_kwargs: dict[str, Any] | None = None,
):
    """The given tokenizer (a processor's own), or the model's, of the same revision where it is
    loaded by name."""
    if processing_class is not None:
        return with_pad_token(getattr(processing_class, "tokenizer", processing_class))
    if isinstance(model, str):
        return load_tokenizer(model, **of_any_file(model_init_kwargs))
    if not model.config._name_or_path:
        raise ValueError("The model has no name to find its tokenizer by; pass processing_class.")
    return load_tokenizer(model.config._name_or_path)


def of_any_file(model_init_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Of the arguments for a model those that its config and tokenizer are loaded with, too."""
    names = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only")
    return {name: v for name, v in (model_init_kwargs or {}).items() if name in names}


def load_policy(name: str, **kwargs: Any) -> PreTrainedModel | PeftModel:
    """A causal language model, or an adapter on its base, ready to be trained further.

    Of an adapter the further arguments are its base's.
    """
    if is_adapter(name):
        base = load_policy(PeftConfig.from_pretrained(name).base_model_name_or_path, **kwargs)
        return PeftModel.from_pretrained(base, name, is_trainable=True)
    config, _ = load_config(name, **of_any_file(kwargs))
    check_causal_config(config, name)
    return _load(AutoModelForCausalLM.from_pretrained, name, "model", **kwargs)


def load_value_model(name: str, processing_class, **kwargs: Any) -> PreTrainedModel | PeftModel:
    """A sequence-classification checkpoint with one label, or an adapter of one.

    Labels and vocabulary are checked against the config, before any weights are read.
    """
    config, adapter = load_config(name, "value model")
    if adapter is None:
        check_value_model(config, processing_class, name)
        load = AutoModelForSequenceClassification.from_pretrained
        return _load(load, name, "value model", **kwargs)
    return _load(
        AutoPeftModelForSequenceClassification.from_pretrained,
        name,
        "value model",
        num_labels=1,
        is_trainable=True,
        **kwargs,
    )


def check_value_model(config, processing_class, name: str = "value_model") -> None:
    """One label, and a vocabulary that holds every id of the policy's tokenizer."""
    if config.num_labels != 1:
        raise ValueError(
            f"{name} has {config.num_labels} labels, a critic has 1: give a reward model "
            "(num_labels=1), or value_model_path='policy' to start from the policy."
        )
    vocab_size = config.get_text_config().vocab_size
    if vocab_size < len(processing_class):
        raise ValueError(
            f"{name} knows {vocab_size} tokens but the policy's tokenizer has "
            f"{len(processing_class)}: the critic must be of the policy's model family."
        )


def check_same_tokenizer(value_model_name: str, processing_class) -> None:
    """The critic's own tokenizer, where it has one, maps text to the same ids."""
    try:
        other = AutoTokenizer.from_pretrained(value_model_name)
    except (OSError, ValueError):
        return  # saved without a tokenizer; the vocabulary size has been checked
    if other.get_vocab() != processing_class.get_vocab():
        raise ValueError(
            f"{value_model_name} uses another tokenizer than the policy: the same ids would mean "
            "other text to the critic. Choose a critic of the policy's model family."
        )


def is_adapter(name: str) -> bool:
    """A PEFT adapter instead of a model: its folder, or its repository on the hub."""
    if Path(name).is_dir():
        return find_adapter_config_file(name) is not None
    return _is_adapter_on_hub(name)


@functools.cache
def _is_adapter_on_hub(name: str) -> bool:
    """Asked once: without a network every question costs half a minute of retries."""
    return find_adapter_config_file(name) is not None


def load_config(
    name: str, what: str = "model", **kwargs: Any
) -> tuple[PreTrainedConfig, PeftConfig | None]:
    """The config of a model, or of an adapter's base with the adapter's settings, to go on with."""
    adapter = None
    if is_adapter(name):
        adapter = PeftConfig.from_pretrained(name)
        adapter.inference_mode = False
        name = adapter.base_model_name_or_path
    return _load(AutoConfig.from_pretrained, name, what, **kwargs), adapter


def _load(load, name: str, what: str, **kwargs: Any):
    """Call a from_pretrained; a name that leads nowhere becomes one sentence."""
    try:
        return load(name, **kwargs)
    except OSError as error:
        raise ValueError(
            f"No {what} at {name!r}: it is no local folder that holds one, and it could not be had "
            "from the Hugging Face hub; check the spelling, the network or your token."
        ) from error


def quantization_config(
    bits: int | None,
    quant_type: str = "nf4",
    nested: bool = True,
    compute_dtype: str | torch.dtype = torch.bfloat16,
) -> BitsAndBytesConfig | None:
    """bitsandbytes settings for 4 or 8 bits, None for neither; `compute_dtype` is that of the
    products with 4-bit weights.

    Only linear layers of the decoder are quantised; head, embeddings and norms keep their type.
    FSDP2 cuts no integers: for it the 4-bit numbers are stored as if they were of `compute_dtype`.
    """
    if bits is None:
        return None
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"{bits}-bit loading needs bitsandbytes: pip install bitsandbytes.")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=torch.uint8 if sharding() is None else compute_dtype,
    )


def load_critic(name: str, args: SPOConfig, processing_class, dtype: torch.dtype, device):
    """The value model `args.value_model_path` names, with its own LoRA and quantisation."""
    check_same_tokenizer(name, processing_class)
    bits = args.value_bits
    kwargs: dict[str, Any] = {"dtype": dtype}
    if bits is not None:
        quantization = quantization_config(bits, compute_dtype=args.compute_dtype)
        kwargs |= {"quantization_config": quantization, "device_map": {"": device}}
    model = load_value_model(name, processing_class, **kwargs)
    if args.value_use_peft and not isinstance(model, PeftModel):
        config = lora_config(args.value_lora_r, args.value_lora_alpha, task_type="SEQ_CLS")
        model = get_peft_model(model, spare_layers(model, config))
    return model if bits is not None else model.to(device)


def lora_config(
    r: int,
    alpha: int,
    dropout: float = 0.0,
    target_modules: list[str] | str | None = None,
    task_type: str = "CAUSAL_LM",
    **kwargs: Any,
) -> LoraConfig:
    """A LoRA configuration; no targets means every linear layer but the head."""
    if isinstance(target_modules, list) and target_modules == ["all-linear"]:
        target_modules = "all-linear"
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules or "all-linear",
        task_type=task_type,
        **kwargs,
    )


def check_target_modules(model: PreTrainedModel, peft_config: PeftConfig) -> None:
    """Every LoRA target names a module; else the error lists those that exist."""
    targets = peft_config.target_modules
    if not isinstance(peft_config, LoraConfig) or targets is None or isinstance(targets, str):
        return
    modules = dict(model.named_modules())
    missing = sorted(
        t for t in targets if not any(f".{name}".endswith(f".{t}") for name in modules)
    )
    if missing:
        names = {n.rsplit(".", 1)[-1] for n, m in modules.items() if isinstance(m, nn.Linear)}
        raise ValueError(
            f"lora_target_modules {missing} match no layer of {type(model).__name__}; "
            f"its linear ones are {sorted(names)}."
        )


def spare_layers(model: PreTrainedModel, peft_config: PeftConfig) -> PeftConfig:
    """ "all-linear" without the layers whose weights a Mamba layer's fused scan reads, and without
    routers of a linear class, whose output is none (PhiMoE)."""
    names = [name for name, _ in scanned_layers(model)]
    names += [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "Router" in type(module).__name__
    ]
    wants_all = getattr(peft_config, "target_modules", None) == "all-linear"
    if not names or not wants_all or peft_config.exclude_modules is not None:
        return peft_config
    peft_config = copy.copy(peft_config)
    peft_config.exclude_modules = names
    return peft_config


def check_scans(model: nn.Module) -> None:
    """No adapter is where it would not be seen."""
    adapted = [name for name, layer in scanned_layers(model) if isinstance(layer, BaseTunerLayer)]
    if adapted:
        raise ValueError(
            f"An adapter on {adapted[0]} is not seen, for a Mamba layer's scan reads the weight "
            f"itself; leave {', '.join(SCANNED)} out of the LoRA targets."
        )


def scanned_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers, by name, whose weights Mamba layers (those with A_log and D) read past them."""
    for name, mixer in model.named_modules():
        if hasattr(mixer, "A_log") and hasattr(mixer, "D"):
            children = dict(mixer.named_children())
            yield from ((f"{name}.{n}", children[n]) for n in SCANNED if n in children)
