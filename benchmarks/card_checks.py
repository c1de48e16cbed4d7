"""Checks of benchmarks/card.py: what has to work on a card, on tiny models.

Each returns figures, or raises AssertionError with what is wrong. With `smoke` it runs on the CPU.
"""

import gc
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import tiny_runs as runs
import torch
from common import MemoryMeter
from memory import random_4bit_model
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import tiny_llama
from transformers import AutoConfig

from spo.networks.batching import MicroBatch
from spo.networks.build import build_policy
from spo.networks.loading import lora_config

LORA = {"peft_config": LoraConfig(**runs.LORA)}
SHARED = LORA | {"value_model": "policy", "value_features": "surprisal", "beta": 0.1}


def _train(folder: str, smoke: bool, **given: Any):
    trainer = runs.make_trainer(Path(folder), use_cpu=smoke, **given)
    before = _weights(trainer)
    trainer.train()
    after = _weights(trainer)
    moved = sum(not torch.equal(before[name], after[name]) for name in before)
    assert moved > 0.5 * len(before), f"only {moved} of {len(before)} tensors moved"
    assert all(weight.isfinite().all() for weight in after.values())
    return trainer


def _weights(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.cpu().clone() for name, weight in trainer._trained().items()}


def placement(smoke: bool) -> dict[str, Any]:
    """Policy, critic, reference, features, evaluation: all of it on the device."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _train(folder, smoke, eval_dataset=runs.prompts(3), **SHARED)
        devices = {str(p.device) for p in trainer.model.parameters()}
        states = trainer.optimizer.state_dict()["state"].values()
        devices |= {str(state["exp_avg"].device) for state in states}
    assert devices == {"cpu" if smoke else "cuda:0"}, devices
    return {"devices": sorted(devices)}


def all_weights(smoke: bool) -> dict[str, Any]:
    """Full fine-tuning with a critic that is a copy, and a reference."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _train(folder, smoke, value_model="policy", beta=0.1)
        norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    return {"grad_norm": norms[-1]}


def four_bits(smoke: bool) -> dict[str, Any]:
    """Forward against the same numbers in a plain layer, and a backward pass through them."""
    device = torch.device("cpu" if smoke else "cuda")
    shape = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 512}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = random_4bit_model(AutoConfig.for_model("qwen2", **shape), device)
    policy = build_policy(model, lora_config(8, 16))
    ids = [[1, 2, 3]] * 4, [[4, 5, 6, 7]] * 4
    batch = MicroBatch.build(np.arange(4), *ids, device)
    layers = [m.get_base_layer() for m in policy.model.modules() if isinstance(m, BaseTunerLayer)]
    states = torch.randn(8, 128, device=device, dtype=torch.bfloat16)
    errors = []
    for layer in (layer for layer in layers if layer.in_features == 128):
        weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(states)
        exact = torch.nn.functional.linear(states, weight, layer.bias)
        errors.append(float((layer(states) - exact).norm() / exact.norm()))
    assert max(errors) < 0.02, errors
    policy.train(True)
    with policy.active(), torch.autocast(device.type, torch.bfloat16):
        logprobs = policy(batch, "logprobs")
    logprobs.sum().backward()
    gradients = [p.grad for p in policy.trainable if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)
    return {"layers": len(errors), "largest_error": max(errors)}


def half(smoke: bool) -> dict[str, Any]:
    """fp16 with its loss scaler: LoRA on a base in float16."""
    if smoke:
        return {"skipped": "Accelerate has no fp16 on a CPU"}
    return _in_16_bits(smoke, "fp16", torch.float16, max_steps=8)  # the first may overflow


def bfloat(smoke: bool) -> dict[str, Any]:
    return _in_16_bits(smoke, "bf16", torch.bfloat16)


def _in_16_bits(smoke: bool, name: str, dtype: torch.dtype, **given: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = runs.folder(Path(folder) / "model")
        trainer = _train(f"{folder}/run", smoke, model=path, **SHARED | {name: True} | given)
        found = trainer.accelerator.mixed_precision
        scaler = trainer.accelerator.scaler
        base = trainer.model.get_input_embeddings().weight.dtype
    assert found != name or base == dtype, f"the base is {base}"
    assert scaler is None or scaler.get_scale() > 0
    return {"computed_in": found, "scale": None if scaler is None else scaler.get_scale()}


def resume(smoke: bool) -> dict[str, Any]:
    """Three steps at once and in two parts; LoRA's dropout draws on the device's generator."""
    dropout = {"peft_config": LoraConfig(**runs.LORA, lora_dropout=0.2)}
    given = dropout | {"value_model": "policy", "max_steps": 3, "save_steps": 2}
    with tempfile.TemporaryDirectory() as folder:
        whole = _train(f"{folder}/whole", smoke, **given)
        stop = [runs.StopAfter(2)]
        runs.make_trainer(f"{folder}/parts", use_cpu=smoke, callbacks=stop, **given).train()
        rest = runs.make_trainer(f"{folder}/parts", use_cpu=smoke, **given)
        rest.train(resume_from_checkpoint="latest")
        ours, theirs = _weights(rest), _weights(whole)
    largest = max(float((ours[n].float() - theirs[n].float()).abs().max()) for n in ours)
    assert largest < 2e-5, f"weights differ by {largest}, a fiftieth of a step is 2e-5"
    return {"same_bits": largest == 0, "largest_difference": largest}


def out_of_memory(smoke: bool) -> dict[str, Any]:
    """Under a cap that its micro-batch is too large for, the same step in smaller ones."""
    given = {"per_device_train_batch_size": 8 if smoke else 256, "learning_rate": 1e-3}
    given |= {"max_completion_length": 8 if smoke else 128, "max_steps": 1}
    given["adam_epsilon"] = 1e-3  # else Adam makes signs of rounding errors

    def model():
        return runs.policy() if smoke else tiny_llama(hidden_size=512, layers=4)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with MemoryMeter() as meter:
            free = _train(f"{folder}/free", smoke, model=model(), **given)
        expected = _weights(free)
        del free
        trainer = runs.make_trainer(f"{folder}/capped", model(), use_cpu=smoke, **given)
        with _cap(trainer, None if smoke else meter.before + int(0.6 * meter.increase)):
            trainer.train()
        found = _weights(trainer)
    words = [str(w.message) for w in said if "Out of memory" in str(w.message)]
    assert words, "memory did not run out"
    largest = max(float((found[n] - expected[n]).abs().max()) for n in found)
    assert largest < 1e-4, f"weights differ by {largest} from those of a step without a cap"
    return {"said": words, "largest_difference": largest}


class _cap:
    """Let the device have no more than so many bytes; None: a CPU that refuses five rows."""

    def __init__(self, trainer, limit: int | None):
        self.network, self.limit = trainer.policy, limit

    def __enter__(self) -> None:
        if self.limit is None:
            self.forward = self.network.forward
            self.network.forward = self._refuse_five_rows
            return
        gc.collect()  # the run without a cap: a trainer and its callbacks hold one another
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(self.limit / total)

    def __exit__(self, *exception: Any) -> None:
        if self.limit is not None:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def _refuse_five_rows(self, batch, want):
        if want == "logprobs" and len(batch.input_ids) > 4:
            raise torch.OutOfMemoryError("pretended")
        return self.forward(batch, want)


CHECKS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "placement": placement,
    "all weights": all_weights,
    "4 bits": four_bits,
    "fp16": half,
    "bf16": bfloat,
    "resume": resume,
    "out of memory": out_of_memory,
}
