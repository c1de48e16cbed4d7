"""Figures of benchmarks/card.py on models of real shapes with random weights: time and memory do
not depend on their values.

With `smoke` shapes are tiny and the device is the CPU.
"""

import argparse
import contextlib
import json
import tempfile
import time
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import speed
import torch
from common import GIB, MemoryMeter, spread
from memory import (
    PROMPT_LENGTH,
    SHAPES,
    lengths_reward,
    model_config,
    random_4bit_model,
    read_recipe,
    repeated_prompt,
)
from tiny import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from spo import SPOTrainer
from spo.generation.engine import SamplingParams
from spo.generation.sampler import Sampler
from spo.networks.build import build_policy
from spo.networks.loading import lora_config
from spo.networks.memory import CARD_RESERVE, estimate_memory
from spo.networks.network import Numerics
from spo.prompts import PromptBatch

SMALL, MIDDLE, LARGE = SHAPES
TINY = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 512}
TINY |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}

PLAIN = {"load_in_4bit": False, "model_name_or_path": SMALL}
STEPS: dict[str, tuple[int, dict[str, Any]]] = {
    "1.5B, 4-bit, 8 GB": (8, {}),
    "3B, 4-bit, 12 GB": (12, {}),
    "7B, 4-bit, 16 GB": (16, {}),
    "1.5B, bf16, 12 GB": (12, PLAIN),
    "1.5B, bf16, whole graph, 24 GB": (24, PLAIN | {"gradient_checkpointing": False}),
    "7B, 4-bit, 24 GB": (24, {}),
}
"""Card and what differs from its recipe (recipes/card.yaml)."""


def _device(smoke: bool) -> str:
    return "cpu" if smoke else "cuda"


def _config(name: str, smoke: bool):
    return AutoConfig.for_model("qwen2", **TINY) if smoke else model_config(name)


def _plain_model(name: str, smoke: bool):
    torch.manual_seed(0)
    dtype = torch.float32 if smoke else torch.bfloat16
    with torch.device(_device(smoke)):
        model = AutoModelForCausalLM.from_config(_config(name, smoke), dtype=dtype)
    model.generation_config.eos_token_id = None
    return model.eval()


# --- steps --------------------------------------------------------------------------------------
def step(name: str, smoke: bool) -> dict[str, Any]:
    """Two steps of 16 completions under the card's cap, the second one counted; peaks by phase."""
    card, changes = STEPS[name]
    total = GIB * card if smoke else torch.cuda.get_device_properties(0).total_memory
    if total < 0.95 * GIB * card:  # the driver keeps a little of what a card is sold as
        return {"skipped": f"this card has {total / GIB:.1f} GiB"}
    changes = changes | {"gradient_accumulation_steps": 2, "max_steps": 2, "eval_steps": 0}
    changes |= {"save_rollouts_steps": 0, "save_steps": 0, "log_completions": False}
    changes |= {"use_cpu": smoke, "disable_tqdm": True, "value_model_path": "policy"}
    if smoke:
        changes |= {"optim": "adamw_torch", "bf16": False, "max_completion_length": 8}
    prompt = 16 if smoke else PROMPT_LENGTH
    with tempfile.TemporaryDirectory() as folder:
        model_args, args = read_recipe(card, output_dir=f"{folder}/run", **changes)
        config = _config(model_args.model_name_or_path, smoke)
        peft = lora_config(model_args.lora_r, model_args.lora_alpha)
        plan = estimate_memory(
            config,
            args,
            prompt_length=prompt,
            peft_config=peft,
            bits=model_args.bits,
            nested=model_args.use_bnb_nested_quant,
        )
        if not smoke:
            torch.cuda.set_per_process_memory_fraction((card - CARD_RESERVE) * GIB / total)
        if model_args.bits:
            model = random_4bit_model(config, _device(smoke))
        else:
            model = _plain_model(model_args.model_name_or_path, smoke)
        trainer = SPOTrainer(
            model=model,
            reward_funcs=lengths_reward,
            args=args,
            train_dataset=repeated_prompt(prompt),
            processing_class=byte_tokenizer(),
            peft_config=peft,
        )
        trainer.save_model = lambda *_: None  # only training is measured
        peaks = _peaks_by_phase(trainer)
        trainer.train()
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    return {
        "predicted_gib": plan.peak / GIB,
        "predicted_generation_gib": (plan.resident + plan.generation) / GIB,
        "peak_gib": max(peaks.values()),
        "peaks_gib": peaks,
        "reserved_gib": None if smoke else torch.cuda.max_memory_reserved() / GIB,
        "seconds": {phase: metrics[f"time/{phase}"] for phase in ("generate", "score", "update")},
        "tokens_per_second": metrics["tokens_per_second"],
        "mean_length": metrics["completions/mean_length"],
    }


def _peaks_by_phase(trainer) -> dict[str, float]:
    """GiB, filled while it trains."""
    timer, peaks = trainer.timer, {}

    @contextlib.contextmanager
    def timed(phase: str):
        with timer(phase), MemoryMeter() as meter:
            yield
        peaks[phase] = max(peaks.get(phase, 0.0), meter.peak / GIB)

    timed.metrics = timer.metrics
    trainer.timer = timed
    return peaks


# --- decoding -----------------------------------------------------------------------------------
DECODERS = ("spo", "spo_modules", "transformers", "vllm")


def decode(engine: str, smoke: bool) -> dict[str, Any]:
    """Tokens per second of 32 completions that do not end, the 1.5B shape in bfloat16; the first
    of three rounds warms up."""
    rows, prompt, length = (4, 8, 8) if smoke else (32, 256, 256)
    if engine == "vllm" and (smoke or find_spec("vllm") is None):
        return {"skipped": "vLLM is not installed, or needs a card"}
    run = {"spo": _decode_ours, "spo_modules": partial(_decode_ours, plain=False)}
    run = (run | {"transformers": _decode_theirs, "vllm": _decode_vllm})[engine]
    seconds = run(rows, prompt, length, smoke)[1:]
    return {
        "rows": rows,
        "prompt": prompt,
        "length": length,
        "tokens_per_second": spread(rows * length / s for s in seconds),
        "milliseconds_per_step": spread(1000 * s / length for s in seconds),
    }


def _prompts(rows: int, length: int) -> list[list[int]]:
    """Of different lengths, as they are in practice."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, 500, length - i % 4).tolist() for i in range(rows)]


def _timed(run, smoke: bool) -> list[float]:
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        run()
        if not smoke:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds


def _decode_ours(
    rows: int, prompt: int, length: int, smoke: bool, plain: bool = True
) -> list[float]:
    """By plain functions over the weights, or by the model's modules."""
    model = _plain_model(SMALL, smoke)
    numerics = Numerics("no" if smoke else "bf16")
    policy = build_policy(model, lora_config(16, 32), numerics)
    sampler, params = Sampler(policy, seed=0), SamplingParams(length, eos_token_ids=())
    assert sampler.is_plain
    sampler.is_plain = plain
    ids = _prompts(rows, prompt)
    order = np.arange(rows)
    batch = PromptBatch(1, order, order, [""] * rows, [""] * rows, ids, {})
    return _timed(lambda: sampler(batch, params, 1), smoke)


def _decode_theirs(rows: int, prompt: int, length: int, smoke: bool) -> list[float]:
    model, ids = _plain_model(SMALL, smoke), _prompts(rows, prompt)
    inputs = torch.zeros(rows, prompt, dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for i, row in enumerate(ids):
        inputs[i, prompt - len(row) :], mask[i, prompt - len(row) :] = torch.tensor(row), 1
    given = {"input_ids": inputs.to(model.device), "attention_mask": mask.to(model.device)}
    given |= {"max_new_tokens": length, "min_new_tokens": length, "pad_token_id": 0}
    return _timed(lambda: model.generate(**given, do_sample=True, top_k=0), smoke)


def _decode_vllm(rows: int, prompt: int, length: int, smoke: bool) -> list[float]:
    from vllm import LLM
    from vllm import SamplingParams as TheirParams

    with tempfile.TemporaryDirectory() as folder:
        config = _config(SMALL, smoke)
        config.architectures = ["Qwen2ForCausalLM"]
        config.save_pretrained(folder)
        engine = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=1024,
        )
        ids = [{"prompt_token_ids": row} for row in _prompts(rows, prompt)]
        params = TheirParams(max_tokens=length, ignore_eos=True, detokenize=False)
        return _timed(lambda: engine.generate(ids, params), smoke)


# --- TRL ----------------------------------------------------------------------------------------
TRAINERS = speed.VARIANTS


def side_by_side(variant: str, smoke: bool) -> dict[str, Any]:
    """A step of `benchmarks/speed.py`, LoRA on the 1.5B shape in bfloat16."""
    if variant == "trl" and find_spec("trl") is None:
        return {"skipped": "TRL is not installed"}
    warnings.filterwarnings("ignore")
    sizes = (8, 8, 16, 8) if smoke else (32, 256, 256, 8)
    with tempfile.TemporaryDirectory() as folder:
        model = _plain_model(SMALL, smoke)
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        del model
        names = ("completions", "length", "prompt_length", "micro_batch")
        options = argparse.Namespace(
            **dict(zip(names, sizes, strict=True)),
            model=folder,
            full=False,
            unreachable_token="<pad>",
            steps=1 if smoke else 2,
            threads=0,
            cpu=smoke,
            generations=8,
        )
        return speed.measure(variant, options)
