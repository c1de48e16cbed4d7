"""How a step's seconds grow with completion length, batch and vocabulary; the credit step's share.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --smoke      # two points of each curve; seconds

Whole steps of SPOTrainer with a critic on a small Llama with random weights, the end token out of
reach, so that every completion is as long as asked for. Along each curve one number changes; a step
to warm up, then `--steps` that count.

The share of the credit step (boundaries, GAE, returns, normalisation) is that of a step of 64 ×
4096 tokens on one layer of this model: with any other its share is smaller still.
"""

import argparse
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, spread, write_result
from datasets import Dataset
from speed import train_spo
from transformers import LlamaConfig, LlamaForCausalLM

from spo.networks.loading import load_tokenizer

BASE = {"length": 256, "completions": 16, "vocabulary": 8192, "layers": 6}
CURVES = {
    "length": (64, 128, 256, 512, 1024),
    "completions": (8, 16, 32, 64),
    "vocabulary": (1024, 8192, 32_768, 131_072),
}
PHASES = ("generate", "score", "credit", "update")
CREDIT = {"length": 4096, "completions": 64, "vocabulary": 512, "layers": 1}
SMALL = {"length": 64, "completions": 8}


def make_model(shape: dict[str, int]) -> LlamaForCausalLM:
    """0.4 million weights a layer. Token 0 is as good as never sampled: the first number of a
    hidden state is about 13, and it alone gets the negative of that."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=shape["layers"],
        num_attention_heads=6,
        max_position_embeddings=shape["length"] + 64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[:, 0] = 1.0
        weight[0, 0] = -1.0
    return model


def steps(shape: dict[str, int], num_steps: int, rows: int = 8) -> list[dict[str, float]]:
    """Seconds per phase of each step, the first one left out."""
    tokenizer = load_tokenizer(str(ROOT / "assets" / "quickstart"))
    tokenizer.eos_token = tokenizer.pad_token  # token 0
    count = shape["completions"] * (num_steps + 1)
    rows = min(rows, shape["completions"])
    args = {
        "value_model_path": "policy",
        "value_features": "surprisal",
        "num_generations": 8,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": shape["completions"] // rows,
        "max_completion_length": shape["length"],
        "max_steps": num_steps + 1,
        "learning_rate": 1e-6,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    dataset = Dataset.from_dict({"prompt": ["1 + 2 ="] * count})
    with tempfile.TemporaryDirectory() as folder:
        metrics = train_spo(folder, make_model(shape), tokenizer, dataset, args)
    if any(m["completions/mean_length"] != shape["length"] for m in metrics):
        raise SystemExit("A completion ended early.")
    return [{phase: m[f"time/{phase}"] for phase in PHASES} for m in metrics[1:]]


def point(shape: dict[str, int], num_steps: int) -> dict[str, Any]:
    measured = steps(shape, num_steps)
    seconds = spread(sum(step.values()) for step in measured)
    tokens = shape["length"] * shape["completions"]
    return {
        **shape,
        "seconds": seconds,
        "ms_per_token": round(1e3 * seconds["median"] / tokens, 4),
        "phases": {phase: spread(step[phase] for step in measured) for phase in PHASES},
    }


def exponent(points: list[dict[str, Any]], name: str) -> float:
    """Slope of log seconds over log size, least squares: 1 is linear.

    >>> exponent([{"n": n, "seconds": {"median": 3.0 * n * n}} for n in (1, 2, 4)], "n")
    2.0
    """
    sizes = [math.log(p[name]) for p in points]
    times = [math.log(p["seconds"]["median"]) for p in points]
    return round(float(np.polyfit(sizes, times, 1)[0]), 3)


def curves(smoke: bool, num_steps: int) -> dict[str, Any]:
    found, base = {}, BASE | (SMALL if smoke else {})
    for name, sizes in CURVES.items():
        points = []
        for size in sizes[:2] if smoke else sizes:
            points.append(point(base | {name: size}, num_steps))
            print(json.dumps(points[-1]), flush=True)
        found[name] = {"points": points, "exponent": exponent(points, name)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2, help="that count, per point")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a little of everything")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    result = {"shape": BASE, "curves": curves(options.smoke, options.steps)}
    result["credit"] = point(CREDIT | (SMALL if options.smoke else {}), 1)
    phases = result["credit"]["phases"]
    result["credit_share"] = phases["credit"]["median"] / result["credit"]["seconds"]["median"]
    print(f"The credit step takes {result['credit_share']:.2%} of a step.")
    write_result("scaling", result, options.out)


if __name__ == "__main__":
    main()
