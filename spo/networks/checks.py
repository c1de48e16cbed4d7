"""Configs and lengths -> one sentence where they do not fit together, before the first rollout."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from spo.rows import beginning, is_stream


def check_causal_config(config: PreTrainedConfig, name: str) -> None:
    """A policy's, by name: one decoder with a vocabulary head."""
    check_decoder_only(config, name)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        raise ValueError(
            f"Transformers has no causal language model of type {config.model_type} ({name}); "
            "choose a decoder such as Qwen, Llama or SmolLM."
        )


def check_decoder_only(config: PreTrainedConfig, name: str) -> None:
    """No encoder reads the prompt."""
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} ({config.model_type}) is an encoder-decoder model; SPO trains decoders only: "
            "choose a causal language model."
        )


def check_router(config: PreTrainedConfig) -> None:
    """No auxiliary loss of a router is asked for."""
    if getattr(config.get_text_config(), "output_router_logits", False):
        raise ValueError(
            "The model's config asks for its router's auxiliary loss (output_router_logits), which "
            "SPO does not add; set it to false: --model_init_kwargs "
            """'{"output_router_logits": false}'."""
        )


def check_attention(model: PreTrainedModel, mixed_precision: str) -> None:
    """Flash attention gets what it computes in."""
    name = getattr(model.config, "_attn_implementation", None) or ""
    if "flash" in name and model.dtype.itemsize > 2 and mixed_precision == "no":
        raise ValueError(
            f"{name} computes in 16 bits only, and this run in float32; add --bf16 (or --fp16), or "
            "choose --attn_implementation sdpa."
        )


def check_scaled_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """fp16 scales the loss, and its gradients back, which PyTorch refuses in float16."""
    if any(parameter.dtype == torch.float16 for parameter in parameters):
        raise ValueError(
            "fp16 trains weights in float32, and these are float16; leave --dtype out, or add "
            "--use_peft, which leaves them frozen."
        )


def check_vocabulary(model: PreTrainedModel | PeftModel, processing_class) -> None:
    """Every id of the tokenizer has an embedding."""
    known = model.get_input_embeddings().weight.shape[0]
    size = len(getattr(processing_class, "tokenizer", processing_class))
    if known < size:
        raise ValueError(
            f"The tokenizer has {size} tokens, the model embeddings for {known}; "
            "call model.resize_token_embeddings(len(tokenizer)) first, or pass the model's own "
            "tokenizer."
        )


def known_positions(config: PreTrainedConfig) -> int | None:
    """How many the model can tell apart; None: as many as there are."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_lengths(
    config: PreTrainedConfig, dataset: Dataset | IterableDataset, max_completion_length: int
) -> None:
    """The longest prompt and its completion fit into the model's positions; what does not is passed
    over in a stream."""
    positions = known_positions(config)
    longest = 0 if is_stream(dataset) else max(map(len, dataset["prompt_ids"]), default=0)
    if positions and longest + max_completion_length > positions:
        raise ValueError(
            f"The longest prompt has {longest} tokens and max_completion_length is "
            f"{max_completion_length}, but the model knows {positions} positions; set "
            f"max_completion_length to at most {max(positions - longest, 1)} or max_prompt_length "
            f"to {max(positions - max_completion_length, 1)}."
        )


def warn_endless(
    eos_token_ids: tuple[int, ...], processing_class: Any, dataset: Dataset | IterableDataset
) -> None:
    """Warn where nothing in what the chat template writes behind an answer ends a completion: a
    base model with the template of its instruction-tuned sibling goes on to the limit."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    prompt = beginning(dataset)[0]["prompt"]
    if isinstance(prompt, str):
        return
    behind = _written_behind(tokenizer, prompt[-1:] if prompt[-1]["role"] == "user" else [])
    if not behind or {*behind} & {*eos_token_ids}:
        return
    ends = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(list(eos_token_ids)))) or "none"
    warnings.warn(
        f"The chat template ends a turn with {tokenizer.decode(behind)!r}, which is no end token "
        f"({ends}): completions go on until max_completion_length. Use the instruction-tuned "
        "model, or set tokenizer.eos_token and model.generation_config.eos_token_id.",
        stacklevel=2,
    )


def _written_behind(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    """The tokens behind an assistant's message; none where the template cannot tell."""
    answer = "answer"
    turns = [*(messages or [{"role": "user", "content": "question"}])]
    turns.append({"role": "assistant", "content": answer})
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError):
        return []
    behind = text.rpartition(answer)[2].strip()
    return tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []


def check_frozen_base(peft_config: PeftConfig, why: str) -> None:
    """No adapter trains the biases of the base that others share."""
    bias = getattr(peft_config, "bias", "none")
    if bias != "none":
        raise ValueError(
            f"bias={bias!r} in the adapter trains the base's own biases, which {why}; set "
            "bias='none'."
        )


def check_second_adapter(peft_config: PeftConfig) -> None:
    """A frozen copy of the adapter can stand beside it."""
    if getattr(peft_config, "target_parameters", None):
        raise ValueError(
            "The reference of a trained adapter (beta > 0) is a frozen copy of it, and PEFT puts "
            "no second adapter on experts' weights (target_parameters); set beta=0, or merge the "
            "adapter into the model first."
        )
