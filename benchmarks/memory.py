"""The recipe for cards -> peak memory and seconds per step, with and without a critic.

    python benchmarks/memory.py                       # on a GPU: recipes/card.yaml under each cap
    python benchmarks/memory.py --smollm2 models/SmolLM2-135M-Instruct      # on the CPU
    python benchmarks/memory.py --estimate            # no GPU: predictions only, marked as such
    python benchmarks/memory.py --logits              # log-probs: chunks against whole logits

On a GPU the models have random weights in the real architecture: memory and speed do not depend
on their values. Each run is a process of its own, held to the size of the card by
`torch.cuda.set_per_process_memory_fraction`. Critic and no critic are run in turns.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import transformers  # noqa: E402
from common import GIB, MemoryMeter, in_fresh_process, spread, write_result  # noqa: E402
from tiny import byte_tokenizer  # noqa: E402

import train_spo  # noqa: E402
from spo import SPOConfig, SPOTrainer  # noqa: E402
from spo.cli import Parser  # noqa: E402
from spo.networks.loading import lora_config  # noqa: E402
from spo.networks.logprobs import token_logprobs  # noqa: E402
from spo.networks.memory import CARD_RESERVE, estimate_memory  # noqa: E402

QWEN2 = {"model_type": "qwen2", "max_position_embeddings": 4096, "use_cache": True}
SHAPES = {
    "Qwen/Qwen2.5-1.5B-Instruct": QWEN2
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-3B-Instruct": QWEN2
    | {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": QWEN2
    | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
"""Public configurations of the models the recipe names (their config.json on the hub)."""

RECIPE = ROOT / "recipes" / "card.yaml"
CARDS: dict[int, dict[str, Any]] = {
    8: {"model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct"},
    12: {"model_name_or_path": "Qwen/Qwen2.5-3B-Instruct", "max_completion_length": 1024},
    16: {"model_name_or_path": "Qwen/Qwen2.5-7B-Instruct"},
    24: {"model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "max_completion_length": 1024},
}
"""What the recipe's table adds for a card of so many GB."""
PROMPT_LENGTH = 512


def read_recipe(card: int, **changes: Any):
    """Model, LoRA and training settings of the recipe for a card, as train_spo.py reads them."""
    classes = (train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig)
    parser = Parser(classes, prog="memory.py")
    values = parser.read_recipe(RECIPE).settings | CARDS[card] | changes
    names = lambda cls: {f: values[f] for f in cls.__dataclass_fields__ if f in values}  # noqa: E731
    return train_spo.ModelArguments(**names(train_spo.ModelArguments)), SPOConfig(
        **names(SPOConfig)
    )


def model_config(name: str):
    shape = dict(SHAPES[name])
    return transformers.AutoConfig.for_model(shape.pop("model_type"), **shape)


def random_4bit_model(config, device: str):
    """The architecture with random weights; the linear layers of its decoder in 4 bits."""
    import bitsandbytes as bnb

    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and module is not head:
            shape = module.weight.shape
            weight = torch.randn(shape, dtype=torch.bfloat16, device=device) * 0.02
            linear = bnb.nn.Linear4bit(
                shape[1], shape[0], module.bias is not None, torch.bfloat16, device="meta"
            )
            linear.weight = bnb.nn.Params4bit(
                weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
            ).to(device)
            if module.bias is not None:
                zeros = torch.zeros(shape[0], dtype=torch.bfloat16, device=device)
                linear.bias = torch.nn.Parameter(zeros, requires_grad=False)
            model.set_submodule(name, linear)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            value = torch.randn(parameter.shape, dtype=torch.bfloat16, device=device) * 0.02
            owner, _, leaf = name.rpartition(".")
            value = torch.nn.Parameter(value if parameter.dim() > 1 else value * 0 + 1)
            setattr(model.get_submodule(owner), leaf, value)
    model.tie_weights()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(device)
    model.is_quantized = model.is_loaded_in_4bit = True
    return model


def repeated_prompt(length: int):
    """64 prompts of so many characters, a byte each, with what the recipe's critic reads."""
    from datasets import Dataset

    return Dataset.from_dict({"prompt": ["x" * length] * 64, "answer": ["7"] * 64})


def lengths_reward(completions, **columns):
    """Some spread, so that no advantage is zero."""
    return [float(len(text) % 7) for text in completions]


def run(card: int, critic: bool, steps: int) -> dict[str, Any]:
    """One training run of the recipe, held to a card's size: peak, seconds per step and phase."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model_args, args = read_recipe(
            card,
            output_dir=folder,
            max_steps=steps,
            value_model_path="policy" if critic else None,
            save_rollouts_steps=0,
            log_completions=False,
            disable_tqdm=True,
        )
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((card - CARD_RESERVE) * GIB / total)
        with MemoryMeter() as meter:
            trainer = SPOTrainer(
                model=random_4bit_model(model_config(model_args.model_name_or_path), "cuda"),
                reward_funcs=lengths_reward,
                args=args,
                train_dataset=repeated_prompt(PROMPT_LENGTH),
                processing_class=byte_tokenizer(),
                peft_config=lora_config(model_args.lora_r, model_args.lora_alpha),
            )
            trainer.save_model = lambda *_: None  # only training is measured
            trainer.train()
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return summarise([json.loads(line) for line in lines], meter)


def summarise(metrics: list[dict], meter: MemoryMeter) -> dict[str, Any]:
    """Peak, and the seconds of every step but the first, which warms up."""
    phases = {p: [m[f"time/{p}"] for m in metrics[1:]] for p in ("generate", "score", "update")}
    return {
        "peak_gib": meter.peak / GIB,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB
        if torch.cuda.is_available()
        else None,
        "seconds": [sum(step) for step in zip(*phases.values(), strict=True)],
        "phases": phases,
        "mean_completion_length": metrics[-1]["completions/mean_length"],
    }


def predict(card: int, critic: bool) -> float:
    """GiB, from the config alone."""
    model_args, args = read_recipe(card, value_model_path="policy" if critic else None)
    estimate = estimate_memory(
        model_config(model_args.model_name_or_path),
        args,
        prompt_length=PROMPT_LENGTH,
        peft_config=lora_config(model_args.lora_r, model_args.lora_alpha),
        bits=4,
        nested=True,
    )
    return estimate.peak / GIB


def prediction(card: int) -> dict[str, Any]:
    model_args, args = read_recipe(card)
    return {
        "shape": model_args.model_name_or_path,
        "max_completion_length": args.max_completion_length,
        "card_gb": card,
        "predicted_gib": predict(card, True),
        "predicted_without_critic_gib": predict(card, False),
    }


def compare(card: int, steps: int) -> dict[str, Any]:
    """The recipe with and without its critic network, in turns, under the card's cap."""
    runs = {True: [], False: []}
    for critic in (False, True):
        runs[critic].append(in_fresh_process(run, card, critic, steps))
    with_critic, without = runs[True][0], runs[False][0]
    pairs = zip(with_critic["seconds"], without["seconds"], strict=True)
    return prediction(card) | {
        "with_critic": with_critic,
        "without_critic": without,
        "memory_ratio": with_critic["peak_gib"] / without["peak_gib"],
        "seconds_ratio": spread(a / b for a, b in pairs),
    }


# --- SmolLM2 on the CPU ---------------------------------------------------------------------------

SMOLLM2 = {
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "max_completion_length": 96,
    "bf16": True,
    "learning_rate": 1e-4,
    "save_rollouts_steps": 0,
    "log_completions": False,
    "disable_tqdm": True,
    "use_cpu": True,
}
SMOLLM2_PROMPT_LENGTH = 50
VARIANTS = {
    "bf16, no critic": (None, None),
    "bf16, shared critic": (None, "policy"),
    "4-bit, no critic": (4, None),
    "4-bit, shared critic": (4, "policy"),
}


def run_smollm2(path: str, variant: str, steps: int) -> dict[str, Any]:
    """LoRA r = 8, 32 completions of exactly 96 tokens a step; peak resident bytes and seconds."""
    warnings.filterwarnings("ignore")
    from datasets import Dataset

    from spo.networks.loading import load_policy, load_tokenizer, quantization_config

    bits, critic = VARIANTS[variant]
    tokenizer = load_tokenizer(path)
    ids = tokenizer("one two three four five six seven eight nine ten " * 10)["input_ids"]
    prompt = tokenizer.decode(ids[:SMOLLM2_PROMPT_LENGTH])
    with tempfile.TemporaryDirectory() as folder, MemoryMeter() as meter:
        kwargs: dict[str, Any] = {"dtype": torch.bfloat16}
        if bits is not None:
            kwargs |= {"quantization_config": quantization_config(bits), "device_map": {"": "cpu"}}
        model = load_policy(path, **kwargs)
        model.generation_config.eos_token_id = None
        tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
        trainer = SPOTrainer(
            model=model,
            reward_funcs=lengths_reward,
            args=SPOConfig(output_dir=folder, max_steps=steps, value_model_path=critic, **SMOLLM2),
            train_dataset=Dataset.from_dict({"prompt": [prompt] * 64}),
            processing_class=tokenizer,
            peft_config=lora_config(8, 16),
        )
        trainer.train()
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    measured = summarise([json.loads(line) for line in lines], meter)
    return measured | {"above_start_gib": meter.increase / GIB}


def predict_smollm2(path: str, variant: str) -> float:
    bits, critic = VARIANTS[variant]
    estimate = estimate_memory(
        transformers.AutoConfig.from_pretrained(path),
        SPOConfig(value_model_path=critic, **SMOLLM2),
        prompt_length=SMOLLM2_PROMPT_LENGTH,
        peft_config=lora_config(8, 16),
        bits=bits,
        nested=True,
    )
    return estimate.peak / GIB


def smollm2_rows(path: str, steps: int, out: Path) -> None:
    """Every variant in a process of its own; a row as soon as it is there."""
    rows = []
    for variant in VARIANTS:
        measured = in_fresh_process(run_smollm2, path, variant, steps)
        row = {"name": variant, "predicted_gib": predict_smollm2(path, variant)} | measured
        rows.append(row | {"seconds": spread(measured["seconds"])})
        print(json.dumps(rows[-1]), flush=True)
        write_result("memory_cpu", {"rows": rows}, out)


# --- logits, whole or in chunks -------------------------------------------------------------------

LOGITS_WIDTH = 64
LARGEST_WHOLE = 2**28
"""Numbers in the largest logits that are held whole."""


def logprobs_peak(tokens: int, vocab_size: int, chunked: bool) -> float:
    """GiB that log-probs of so many tokens and their gradient take, on the device at hand."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    head = torch.nn.Linear(LOGITS_WIDTH, vocab_size, bias=False, device=device)
    head.requires_grad_(False)
    states = torch.randn(tokens, LOGITS_WIDTH, device=device, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long, device=device)
    with MemoryMeter() as meter:
        if chunked:
            logprobs = token_logprobs(states, head, targets)
        else:
            logprobs = head(states).log_softmax(-1).gather(-1, targets[:, None])
        logprobs.sum().backward()
    return meter.increase / GIB


def logits_rows(out: Path) -> None:
    """Peak against number of tokens and size of the vocabulary."""
    rows = []
    for vocab_size in (32_000, 64_000, 128_000):
        for tokens in (512, 1024, 2048, 4096, 8192):
            whole = None
            if tokens * vocab_size <= LARGEST_WHOLE:
                whole = in_fresh_process(logprobs_peak, tokens, vocab_size, False)
            chunked = in_fresh_process(logprobs_peak, tokens, vocab_size, True)
            rows.append({"vocab_size": vocab_size, "tokens": tokens})
            rows[-1] |= {"chunked_gib": chunked, "whole_gib": whole}
            print(json.dumps(rows[-1]), flush=True)
    write_result("memory_logits", {"rows": rows}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cards", type=int, nargs="+", default=list(CARDS))
    parser.add_argument("--steps", type=int, default=3, help="the first one only warms up")
    parser.add_argument("--estimate", action="store_true", help="predictions only")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--smollm2", metavar="FOLDER", help="SmolLM2-135M on the CPU instead")
    parser.add_argument("--logits", action="store_true", help="log-probs alone, over T and V")
    options = parser.parse_args()
    if options.logits:
        return logits_rows(options.out)
    if options.smollm2:
        return smollm2_rows(options.smollm2, options.steps, options.out)
    rows = []
    for card in options.cards:
        if options.estimate:
            rows.append(prediction(card))
        else:
            rows.append(compare(card, options.steps))
        print(json.dumps(rows[-1]), flush=True)
        kind = "estimated" if options.estimate else "measured"
        write_result(f"memory_{kind}", {"kind": kind, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
