"""A step of SPO with either critic, of its GRPO mode and of TRL's Transformers backend, in turns.

    python benchmarks/speed.py --model models/SmolLM2-135M-Instruct
    python benchmarks/speed.py --model models/SmolLM2-135M-Instruct --generations 2
    python benchmarks/speed.py --model assets/quickstart --full --completions 64

Completions of one prompt share its work in ours: with 8 of them much, with 2, the least that GRPO
takes, little. TRL samples with `generate` here; with vLLM it would be another table.

Same model, prompts and completion length (the end token is out of reach), LoRA r = 8 on all linear
layers, in bfloat16 unless --full or where the device lacks its arithmetic. Every measurement is a
process of its own: a step to warm up, then `--steps` that count. The variants take turns, so that a
load on the machine strikes all alike.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from common import GIB, RESULTS, MemoryMeter, in_fresh_process, ratios, spread, write_result

OURS: dict[str, dict[str, Any]] = {
    "spo": {"value_model_path": "policy", "value_features": "surprisal"},
    "spo_path": {"value_features": "surprisal"},
    "grpo": {},
}
VARIANTS = (*OURS, "trl")
SHAPE = ("completions", "generations", "length", "prompt_length")


def measure(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step and phase, and peak memory, of one variant in this process."""
    warnings.filterwarnings("ignore")
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    run = _run_trl if variant == "trl" else _run_spo
    with tempfile.TemporaryDirectory() as folder, MemoryMeter() as meter:
        phases = run(variant, options, folder)
    seconds = [sum(step.values()) for step in phases[1:]]
    tokens = options.completions * options.length
    return {
        "seconds": seconds,
        "phases": phases[1:],
        "tokens_per_second": [tokens / s for s in seconds],
        "peak_gib": meter.peak / GIB,
        "above_start_gib": meter.increase / GIB,
    }


def some_reward(completions, **columns) -> list[float]:
    """Some spread, so that no advantage is zero."""
    return [float(len(text) % 7) for text in completions]


def model_and_prompts(options: argparse.Namespace):
    """Model, tokenizer without an end in reach, and a data set of prompts within 8 % of the asked
    length: equal ones, rare in practice, take other paths through attention."""
    import torch
    from datasets import Dataset

    from spo.networks.loading import load_policy, load_tokenizer

    tokenizer = load_tokenizer(options.model)
    dtype = torch.bfloat16 if computes_in_bf16(options) else torch.float32
    model = load_policy(options.model, dtype=dtype)
    ids = tokenizer("State the answer: one + two + three = " * 40)["input_ids"]
    count = 2 * options.completions
    shortest = round(0.92 * options.prompt_length)
    lengths = [shortest + i % (2 * (options.prompt_length - shortest) + 1) for i in range(count)]
    prompts = [tokenizer.decode(ids[:length]) for length in lengths]
    return model, tokenizer, Dataset.from_dict({"prompt": prompts})


def computes_in_bf16(options: argparse.Namespace) -> bool:
    """Where the device has the arithmetic for it; never with --full."""
    import torch

    from spo.precision import has_bf16

    on_cpu = options.cpu or not torch.cuda.is_available()
    return not options.full and has_bf16("cpu" if on_cpu else "cuda")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What SPOConfig and GRPOConfig both understand."""
    import torch

    rows = min(options.completions, options.micro_batch)
    return {
        "num_generations": options.generations,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": options.completions // rows,
        "max_completion_length": options.length,
        "max_steps": options.steps + 1,
        "learning_rate": 1e-5,
        "bf16": computes_in_bf16(options),
        "use_cpu": options.cpu or not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
    }


def adapter(options: argparse.Namespace):
    from spo.networks.loading import lora_config

    return None if options.full else lora_config(8, 16)


def _run_spo(variant: str, options: argparse.Namespace, folder: str) -> list[dict[str, float]]:
    model, tokenizer, dataset = model_and_prompts(options)
    tokenizer.eos_token = tokenizer.pad_token = options.unreachable_token
    args = settings(options) | OURS[variant]
    metrics = train_spo(folder, model, tokenizer, dataset, args, adapter(options))
    return [{name: m[f"time/{name}"] for name in ("generate", "score", "update")} for m in metrics]


def train_spo(
    folder: str, model, tokenizer, dataset, args: dict[str, Any], peft_config=None
) -> list[dict[str, float]]:
    """The metrics of every step; only the tokenizer's end token ends a completion."""
    from spo import SPOConfig, SPOTrainer

    model.generation_config.eos_token_id = None
    trainer = SPOTrainer(
        model=model,
        reward_funcs=some_reward,
        args=SPOConfig(
            output_dir=folder,
            save_rollouts_steps=0,
            log_completions=False,
            **args,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    trainer.train()
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def _run_trl(variant: str, options: argparse.Namespace, folder: str) -> list[dict[str, float]]:
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer, dataset = model_and_prompts(options)
    phases: list[dict[str, float]] = []

    class Timed(GRPOTrainer):
        """Takes the time of sampling and of sampling with all that follows before the update."""

        def _generate(self, *args, **kwargs):
            begun = time.perf_counter()
            output = super()._generate(*args, **kwargs)
            self.generating = time.perf_counter() - begun
            return output

        def _generate_and_score_completions(self, *args, **kwargs):
            begun = time.perf_counter()
            output = super()._generate_and_score_completions(*args, **kwargs)
            self.scoring = time.perf_counter() - begun - self.generating
            return output

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.begun = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            whole = time.perf_counter() - self.begun
            generate, score = trainer.generating, trainer.scoring
            phases.append({"generate": generate, "score": score})
            phases[-1]["update"] = whole - generate - score

    trainer = Timed(
        model=model,
        reward_funcs=some_reward,
        args=GRPOConfig(
            output_dir=folder,
            beta=0.0,
            logging_steps=1,
            save_strategy="no",
            generation_kwargs={"min_new_tokens": options.length},
            **settings(options),
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapter(options),
        callbacks=[Steps()],
    )
    trainer.train()
    return phases


def summarise(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians per variant, and ratios to TRL's, step by step of neighbouring runs."""
    seconds = {name: [s for row in of_one for s in row["seconds"]] for name, of_one in rows.items()}
    memory = {name: [row["peak_gib"] for row in of_one] for name, of_one in rows.items()}
    summary: dict[str, Any] = {
        name: {
            "seconds": spread(seconds[name]),
            "peak_gib": spread(memory[name]),
            "above_start_gib": spread(row["above_start_gib"] for row in of_one),
            "phases": {
                phase: spread(step[phase] for row in of_one for step in row["phases"])
                for phase in of_one[0]["phases"][0]
            },
            "tokens_per_second": spread(t for row in of_one for t in row["tokens_per_second"]),
        }
        for name, of_one in rows.items()
    }
    for ours in OURS:
        if ours in rows and "trl" in rows:
            summary[f"{ours}_over_trl"] = {
                "seconds": ratios(seconds, ours, "trl"),
                "peak": ratios(memory, ours, "trl"),
            }
    return summary


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--completions", type=int, default=32)
    parser.add_argument("--generations", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--length", type=int, default=96, help="tokens of every completion")
    parser.add_argument("--prompt_length", type=int, default=50)
    parser.add_argument("--micro_batch", type=int, default=8, help="rows in a forward/backward")
    parser.add_argument("--full", action="store_true", help="all weights in float32, no LoRA")
    parser.add_argument("--unreachable_token", default="<|endoftext|>")
    parser.add_argument("--steps", type=int, default=1, help="that count, per process")
    parser.add_argument("--repetitions", type=int, default=3, help="processes per variant")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--cpu", action="store_true", help="even where a GPU is present")
    parser.add_argument("--name", default="speed", help="of the JSON file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    rows: dict[str, list[dict[str, Any]]] = {variant: [] for variant in options.variants}
    for _ in range(options.repetitions):
        for variant in options.variants:
            rows[variant].append(in_fresh_process(measure, variant, options))
            print(variant, json.dumps(rows[variant][-1]), flush=True)
    shape = {"model": Path(options.model).name, "full": options.full}
    shape |= {k: getattr(options, k) for k in SHAPE}
    write_result(options.name, {"shape": shape, "summary": summarise(rows)}, options.out)


if __name__ == "__main__":
    main()
