"""Peak memory of one forward and backward pass, measured and predicted, as JSON.

    MALLOC_MMAP_THRESHOLD_=65536 python tests/measured_peaks.py

So that glibc gives back what is freed; a process of its own, since another's heap would be reused.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

from common import MemoryMeter  # noqa: E402

from spo import SPOConfig  # noqa: E402
from spo.networks.batching import MicroBatch  # noqa: E402
from spo.networks.build import build_policy, enable_gradient_checkpointing  # noqa: E402
from spo.networks.loading import lora_config  # noqa: E402
from spo.networks.memory import estimate_memory  # noqa: E402
from spo.networks.network import transformer  # noqa: E402

ROWS, PROMPT, COMPLETION = 4, 96, 288
CONFIG = LlamaConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def peak(lora: bool, checkpointing: bool) -> dict[str, float]:
    """Bytes above the loaded model and its gradients."""
    peft = lora_config(16, 32) if lora else None
    args = SPOConfig(
        per_device_train_batch_size=ROWS,
        num_generations=ROWS,
        max_completion_length=COMPLETION,
        gradient_checkpointing=checkpointing,
    )
    plan = estimate_memory(CONFIG, args, prompt_length=PROMPT, peft_config=peft)
    network = build_policy(LlamaForCausalLM(CONFIG), peft)
    if checkpointing:
        enable_gradient_checkpointing(transformer(network.model))
    network.train(True)
    _forward_and_backward(network, 1, 4, 4)  # gradients, and what libraries load once
    with MemoryMeter() as meter:
        _forward_and_backward(network, ROWS, PROMPT, COMPLETION)
    return {"measured": meter.increase, "predicted": plan.activations + plan.logits}


def _forward_and_backward(network, rows: int, prompt: int, completion: int) -> None:
    ids = [[1] * prompt] * rows, [[2] * completion] * rows
    batch = MicroBatch.build(np.arange(rows), *ids, torch.device("cpu"))
    with network.active():
        network(batch, "logprobs").sum().backward()


if __name__ == "__main__":
    torch.set_num_threads(1)  # others only wait, and count on a machine at work
    kinds = [(lora, checkpointing) for lora in (True, False) for checkpointing in (False, True)]
    print(json.dumps([peak(*kind) for kind in kinds]))
