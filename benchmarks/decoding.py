"""A step of one token for each row: plain functions over the weights against the model's modules.

python benchmarks/decoding.py                 # docs/engines.md

Time in turns, on one thread, and the operations dispatched, which are what a card waits for: each
is looked up, and all but views are launched by themselves. Views are counted apart. On CUDA an RMS
norm is one operation more than the five here that PyTorch makes of it on a CPU, in both columns.
"""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from spo.generation.decoder import PlainDecoder, is_plain
from spo.generation.engine import SamplingParams
from spo.generation.sampler import sample, uniforms
from spo.networks.build import build_policy
from spo.networks.loading import lora_config
from spo.networks.network import Network

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
VIEWS = {
    "_unsafe_view",
    "alias",
    "detach",
    "expand",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unsqueeze",
    "view",
}


class Operations(TorchDispatchMode):
    """Counts what is dispatched, by name."""

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names[operation.overloadpacket.__name__] += 1
        return operation(*args, **kwargs or {})


def make_policy(shape: str) -> Network:
    """With an adapter on all linear layers, in evaluation mode."""
    torch.manual_seed(0)
    if shape == "quickstart":
        model = AutoModelForCausalLM.from_pretrained(common.ROOT / "assets" / "quickstart")
    else:
        sizes = SMOLLM2 if shape == "SmolLM2-135M" else SMOLLM2 | {"num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    policy = build_policy(model, lora_config(8, 16, 0.0, "all-linear"))
    assert is_plain(policy, merge=True)
    return policy.eval()


def compare(policy: Network, rows: int, padded: bool, options: argparse.Namespace) -> dict:
    """Seconds of a whole sampling, prompts included, and operations of its last step."""
    drawn = np.random.default_rng(0)
    lengths = [20 + (i % 8) * padded for i in range(rows)]
    prompts = [[int(i) for i in drawn.integers(3, 40, size=length)] for length in lengths]
    params = SamplingParams(options.length, eos_token_ids=())
    noise = uniforms(0, 1, np.arange(rows), options.length)
    with policy.merged() as merged:
        decoders = {
            "modules": partial(policy, want="next_logits"),
            "plain": PlainDecoder(policy, merged),
        }
        counts = {name: operations(policy, decode, prompts) for name, decode in decoders.items()}

        def run(decode):
            return sample(policy, prompts, noise, params, decode=decode).token_ids

        variants = {name: partial(run, decode) for name, decode in decoders.items()}
        assert variants["plain"]() == variants["modules"]()
        seconds = common.alternate(variants, options.repetitions, warmup=0)
    return {
        "rows": rows,
        "padded": padded,
        "operations": counts,
        "ratio": {kind: common.ratios(of, "plain", "modules") for kind, of in seconds.items()},
        "milliseconds_per_token": {
            name: common.spread(1e3 * s / options.length for s in times)
            for name, times in seconds["wall"].items()
        },
    }


def operations(policy: Network, decode: Any, prompts: list[list[int]]) -> dict[str, int]:
    """Dispatched in a step of one token, and those of them that are no views."""
    last: list[Counter[str]] = []

    def counted(step):
        with Operations() as dispatched:
            logits = decode(step)
        last[:] = [dispatched.names]
        return logits

    noise = uniforms(0, 1, np.arange(len(prompts)), 4)
    sample(policy, prompts, noise, SamplingParams(4, ()), decode=counted)
    views = sum(count for name, count in last[0].items() if name in VIEWS)
    return {"all": last[0].total(), "computing": last[0].total() - views}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["quickstart", "SmolLM2-135M"])
    parser.add_argument("--rows", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--length", type=int, default=24, help="tokens of a completion")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a little of everything")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.smoke:
        options.shapes, options.rows, options.repetitions = ["quickstart", "two layers"], [4], 1
    found = []
    for shape in options.shapes:
        policy = make_policy(shape)
        for rows in options.rows:
            for padded in (False, True):
                row = {"model": shape} | compare(policy, rows, padded, options)
                print(row, flush=True)
                found.append(row)
    common.write_result("decoding", {"length": options.length, "shapes": found}, options.out)


if __name__ == "__main__":
    main()
