"""What vLLM takes of the card when it runs beside the trainer (vllm_mode="colocate")."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from spo.config import SPOConfig
from spo.networks.network import transformer


@dataclass(frozen=True)
class EngineMemory:
    """One card's part of vLLM.

    Attributes:
        needed: bytes it cannot do without: its weights, and the cache of one completion.
        share: of the card, which it takes whether it needs it or not.
        sleeps: it gives all of it back during the update.
    """

    needed: float
    share: float
    sleeps: bool

    def taken(self, card_bytes: float) -> float:
        """Of a card of this size."""
        return max(self.needed, self.share * card_bytes)

    def peak(self, resident: float, update: float, card_bytes: float) -> float:
        """Of trainer and engine together."""
        taken = self.taken(card_bytes)
        return resident + (max(taken, update) if self.sleeps else taken + update)

    def fits_its_share(self, card_bytes: float) -> bool:
        """Its share of a card of this size is enough for it."""
        return self.needed <= self.share * card_bytes


def engine_memory(
    model: PreTrainedModel | PeftModel,
    args: SPOConfig,
    quantized_bytes: float | None,
    length: int,
) -> EngineMemory | None:
    """None where vLLM is not on this card.

    Args:
        model: the policy with its adapter; vLLM holds both a second time.
        quantized_bytes: of its base where that is held in 4 bits, None where it is not.
        length: longest prompt and completion.
    """
    if not args.use_vllm or args.vllm_mode != "colocate":
        return None
    config = transformer(model).config.get_text_config()
    itemsize = getattr(torch, args.compute_dtype).itemsize
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    needed = 2 * heads * head_dim * config.num_hidden_layers * length * itemsize  # the cache
    for weight in model.parameters():
        if weight.requires_grad or quantized_bytes is None:
            needed += weight.numel() * itemsize
    return EngineMemory(
        needed=(needed + (quantized_bytes or 0.0)) / args.vllm_tensor_parallel_size,
        share=args.vllm_gpu_memory_utilization,
        sleeps=args.vllm_enable_sleep_mode,
    )
