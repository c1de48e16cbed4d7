"""One policy update -> seconds and peak memory, laid out our way and the usual way.

Forward and backward of the policy loss over the same completions, prompts, weights and number of
rows per micro-batch:

- ours: micro-batches of similar length, each padded to its own longest row, log-probs a chunk of
  tokens at a time (`spo.networks`);
- padded: prompts left-padded and completions right-padded to the longest of all, logits of all
  completion positions at once, log_softmax over them in float32;
- trl: the same padding with TRL's own log-probs, a chunk of tokens at a time, where TRL is
  installed.

First checks, in float32, that all have the same loss and gradient. Then measures times in turns
within one process, and the peak memory of each in a process of its own. A plain product of two
square matrices takes its turn, too: what share of its FLOP/s does the update reach? A CPU without
bfloat16 arithmetic computes all of it in float32.

    python scripts/fetch_smollm2.py && python benchmarks/update.py
    python benchmarks/update.py --smoke              # a tiny random model; seconds
"""

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    GIB,
    RESULTS,
    ROOT,
    MemoryMeter,
    alternate,
    in_fresh_process,
    ratios,
    spread,
    write_result,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from spo.losses import policy_loss, token_weights
from spo.networks.batching import Sequences
from spo.networks.build import build_policy, leave_inputs_in_16_bits
from spo.networks.loading import lora_config
from spo.networks.network import Network, Numerics, transformer
from spo.precision import cpu_has_bf16

PRODUCTS = 10
"""Matrix products in a turn."""
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Workload:
    """B ragged rows with what the policy loss wants to know about each token, (B, T)."""

    prompt_ids: list[list[int]]
    token_ids: list[list[int]]
    logprobs_old: Tensor
    advantages: Tensor
    weights: Tensor

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))


def make_workload(args: argparse.Namespace, network: Network) -> Workload:
    """Random tokens: time and memory do not depend on which.

    Completions are from 1/6 to all of `max_completion_length` long, evenly spread, prompts
    `prompt_length` ± 20 %. Old log-probs are the network's own, moved at random.
    """
    vocab_size = network.head.weight.shape[0]
    rng = np.random.default_rng(args.seed)
    num_rows, longest = args.completions, args.max_completion_length
    lengths = np.linspace(longest // 6, longest, num_rows).astype(int)
    prompt_lengths = rng.integers(
        int(0.8 * args.prompt_length), int(1.2 * args.prompt_length) + 1, num_rows
    )
    ids = [
        rng.integers(3, vocab_size, n).tolist()
        for n in [*prompt_lengths, *rng.permutation(lengths)]
    ]
    prompt_ids, token_ids = ids[:num_rows], ids[num_rows:]
    prompt_ids = [prompt_ids[i - i % args.generations] for i in range(num_rows)]
    mask = np.arange(longest) < np.array([len(row) for row in token_ids])[:, None]
    old = reference_logprobs(network, prompt_ids, token_ids, longest, args)
    old -= rng.normal(0, 0.15, mask.shape)  # some ratios are clipped
    columns = (old, rng.normal(size=mask.shape), token_weights(mask, "dapo", longest))
    return Workload(
        prompt_ids, token_ids, *(torch.from_numpy(c.astype(np.float32)) for c in columns)
    )


@torch.no_grad()
def reference_logprobs(network, prompt_ids, token_ids, width: int, args) -> np.ndarray:
    """(B, T), row by row: no padding, no chunks, nothing of either variant."""
    logprobs = np.zeros((len(token_ids), width))
    with network.active(), _autocast(args):
        for i, (prompt, tokens) in enumerate(zip(prompt_ids, token_ids, strict=True)):
            logits = network.model(input_ids=torch.tensor([prompt + tokens])).logits[0].float()
            of_all = (logits / args.temperature).log_softmax(-1)
            for t, token in enumerate(tokens):
                logprobs[i, t] = of_all[len(prompt) - 1 + t, token]
    return logprobs


def load_network(args: argparse.Namespace) -> Network:
    """The base in `args.dtype`, frozen, under a LoRA adapter that already changes something."""
    torch.manual_seed(args.seed)
    dtype = getattr(torch, args.dtype)
    if args.smoke:
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        model = LlamaForCausalLM(config).to(dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    numerics = Numerics(temperature=args.temperature)
    network = build_policy(model, lora_config(r=8, alpha=16), numerics)
    if args.dtype == "bfloat16":
        leave_inputs_in_16_bits(network.model)
    for name, parameter in network.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    network.train(True)
    return network


# --- the variants -----------------------------------------------------------------------------


def loss_of(logprobs: Tensor, work: Workload, rows: np.ndarray) -> Tensor:
    """The policy loss of the given rows; `logprobs` is (b, T) up to their longest."""
    width = logprobs.shape[1]
    old, advantages, weights = (
        column[rows, :width] for column in (work.logprobs_old, work.advantages, work.weights)
    )
    segment_ids = torch.zeros(logprobs.shape, dtype=torch.long)
    loss, _ = policy_loss(logprobs, old, advantages, weights, segment_ids, epsilon=0.2)
    return loss


def run_ours(network: Network, work: Workload, args: argparse.Namespace) -> float:
    """What spo.update does for the policy."""
    sequences = Sequences(work.prompt_ids, work.token_ids, share_prompts=True)
    every_row = np.arange(len(work.token_ids))
    total = 0.0
    with network.active():
        for batch in sequences.micro_batches(
            every_row, args.rows_per_micro_batch, None, torch.device("cpu")
        ):
            with _autocast(args):
                loss = loss_of(network(batch, want="logprobs"), work, batch.rows)
            loss.backward()
            total += loss.item()
    return total


def run_padded(network: Network, work: Workload, args: argparse.Namespace) -> float:
    """What a trainer does that pads to the longest of all and takes whole logits."""

    def logprobs_of(input_ids: Tensor, mask: Tensor, width: int) -> Tensor:
        given = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
        logits = network.model(**given, logits_to_keep=width + 1).logits[:, :-1]
        logits = logits.float() / args.temperature  # (b, T, V)
        targets = input_ids[:, -width:, None]
        return logits.log_softmax(-1).gather(-1, targets).squeeze(-1)

    return _run_padded(network, work, args, logprobs_of)


def run_trl(network: Network, work: Workload, args: argparse.Namespace) -> float:
    """The same rows with the head that TRL 1.16 puts on a model."""
    from trl.trainer.utils import add_fused_lm_head

    model = transformer(network.model)
    if "forward" not in vars(model):
        add_fused_lm_head(model, temperature=args.temperature)

    def logprobs_of(input_ids: Tensor, mask: Tensor, width: int) -> Tensor:
        labels = input_ids.masked_fill(mask == 0, -100)
        labels[:, :-width] = -100
        given = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
        return network.model(**given, fused_lm_head=True).log_probs[:, -width:]

    return _run_padded(network, work, args, logprobs_of)


def _run_padded(network: Network, work: Workload, args, logprobs_of) -> float:
    prompt_width, width = (max(map(len, ids)) for ids in (work.prompt_ids, work.token_ids))
    input_ids = torch.zeros(len(work.token_ids), prompt_width + width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for i, (prompt, tokens) in enumerate(zip(work.prompt_ids, work.token_ids, strict=True)):
        columns = slice(prompt_width - len(prompt), prompt_width + len(tokens))
        input_ids[i, columns] = torch.tensor([*prompt, *tokens])
        mask[i, columns] = 1
    total = 0.0
    with network.active():
        for rows in np.arange(len(input_ids)).reshape(-1, args.rows_per_micro_batch):
            with _autocast(args):
                loss = loss_of(logprobs_of(input_ids[rows], mask[rows], width), work, rows)
            loss.backward()
            total += loss.item()
    return total


VARIANTS = {"ours": run_ours, "padded": run_padded}
if find_spec("trl"):
    VARIANTS["trl"] = run_trl


def _autocast(args: argparse.Namespace):
    return torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16")


# --- measurements ---------------------------------------------------------------------------------


def loss_and_gradient(name: str, network: Network, work: Workload, args) -> tuple[float, Tensor]:
    for parameter in network.trainable:
        parameter.grad = None
    loss = VARIANTS[name](network, work, args)
    return loss, torch.cat([parameter.grad.flatten() for parameter in network.trainable])


def compare(args: argparse.Namespace) -> dict[str, float]:
    """Loss of each variant and the largest distance of a gradient from the padded one's, relative
    to its length."""
    network = load_network(args)
    work = make_workload(args, network)
    found = {name: loss_and_gradient(name, network, work, args) for name in VARIANTS}
    gradient = found["padded"][1]
    differences = [(g - gradient).norm() / gradient.norm() for _, g in found.values()]
    losses = {name: loss for name, (loss, _) in found.items()}
    return losses | {"gradient_difference": max(differences).item()}


def check_equal(args: argparse.Namespace) -> dict[str, float]:
    """All variants are the same mathematics: equal in float32 on a few rows."""
    few = {"dtype": "float32", "completions": 8, "rows_per_micro_batch": 4}
    found = compare(argparse.Namespace(**vars(args) | few))
    if any(abs(found[v] - found["padded"]) > 1e-4 * abs(found["padded"]) for v in VARIANTS):
        raise SystemExit(f"The losses differ: {found}.")
    if found["gradient_difference"] > 1e-3:
        raise SystemExit(f"The gradients differ: {found}.")
    return found


def measure_time(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    network = load_network(args)
    work = make_workload(args, network)
    args.completion_tokens = work.num_tokens
    with FlopCounterMode(display=False) as counter:
        loss_and_gradient("ours", network, work, args)
    args.update_flops = counter.get_total_flops()
    runs = {
        name: lambda name=name: loss_and_gradient(name, network, work, args) for name in VARIANTS
    }
    shape = (2, args.product_size, args.product_size)
    left, right = torch.randn(shape, dtype=getattr(torch, args.dtype))

    def products():
        for _ in range(PRODUCTS):
            left @ right

    return alternate(runs | {"product": products}, args.repetitions)


def flops(args: argparse.Namespace, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """FLOP/s of the update's matrix products, of a plain one, and the first over the second."""
    update = [args.update_flops / s for s in seconds["ours"]]
    product = [PRODUCTS * 2 * args.product_size**3 / s for s in seconds["product"]]
    return {
        "of_update": args.update_flops,
        "update_gflops_per_second": spread(f / 1e9 for f in update),
        "product_gflops_per_second": spread(f / 1e9 for f in product),
        "fraction": spread(u / p for u, p in zip(update, product, strict=True)),
    }


def measure_memory(args: argparse.Namespace, name: str, threads: int) -> dict[str, float]:
    """Called in a fresh process; the model, and what libraries load once, are not counted."""
    torch.set_num_threads(threads)
    network = load_network(args)
    one_row = {"completions": 1, "rows_per_micro_batch": 1, "max_completion_length": 6}
    short = argparse.Namespace(**vars(args) | one_row)
    loss_and_gradient(name, network, make_workload(short, network), short)
    work = make_workload(args, network)
    with MemoryMeter() as meter:
        loss_and_gradient(name, network, work, args)
    return {
        "peak_gib": round(meter.peak / GIB, 3),
        "increase_gib": round(meter.increase / GIB, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(SMOLLM2), help="model folder")
    fast = "bfloat16" if cpu_has_bf16() else "float32"
    parser.add_argument(
        "--dtype", default=fast, choices=("bfloat16", "float32"), help=f"default here: {fast}"
    )
    parser.add_argument("--completions", type=int, default=32)
    parser.add_argument("--generations", type=int, default=1, help="completions of a prompt")
    parser.add_argument("--max_completion_length", type=int, default=96)
    parser.add_argument("--prompt_length", type=int, default=50)
    parser.add_argument("--rows_per_micro_batch", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--product_size", type=int, default=2048, help="rows of the plain product")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny model, few rows; writes to build/"
    )
    parser.add_argument("--output_dir", type=Path, help="default: benchmarks/results")
    args = parser.parse_args()
    if args.smoke:
        args.completions, args.rows_per_micro_batch = 8, 4
        args.max_completion_length, args.product_size, args.repetitions = 24, 256, 2
    if args.completions % args.rows_per_micro_batch:
        parser.error("--completions must be a multiple of --rows_per_micro_batch")
    if not args.smoke and not Path(args.model).is_dir():
        parser.error(f"no model at {args.model}; run scripts/fetch_smollm2.py or use --smoke")

    if args.threads:
        torch.set_num_threads(args.threads)
    equality = check_equal(args)
    print(
        f"float32: losses {', '.join(f'{equality[name]:.6f}' for name in VARIANTS)}, "
        f"gradients differ by {equality['gradient_difference']:.1e}"
    )
    threads = torch.get_num_threads()
    memory = {name: in_fresh_process(measure_memory, args, name, threads) for name in VARIANTS}
    seconds = measure_time(args)
    names = (
        "dtype completions generations max_completion_length prompt_length rows_per_micro_batch "
        "product_size repetitions temperature seed"
    )
    payload = {
        "model": "tiny random Llama" if args.smoke else Path(args.model).name,
        "settings": {name: getattr(args, name) for name in names.split()},
        "completion_tokens": args.completion_tokens,
        "equality_float32": equality,
        "seconds": {
            clock: {name: spread(values) for name, values in times.items()}
            for clock, times in seconds.items()
        },
        "flops": flops(args, seconds["wall"]),
        "time_ratio": {clock: ratios(times, "ours", "padded") for clock, times in seconds.items()},
        "memory": memory,
        "memory_ratio": memory_ratio(memory, "padded"),
    }
    if "trl" in VARIANTS:
        payload["over_trl"] = {
            "seconds": {clock: ratios(times, "ours", "trl") for clock, times in seconds.items()},
            "memory": memory_ratio(memory, "trl"),
        }
    show(payload)
    folder = args.output_dir or (ROOT / "build" / "benchmarks" if args.smoke else RESULTS)
    print(f"written to {write_result('update', payload, folder).name}")


def memory_ratio(memory: dict[str, dict[str, float]], theirs: str) -> float:
    """Of what ours takes above the loaded model."""
    return round(memory["ours"]["increase_gib"] / max(memory[theirs]["increase_gib"], 1e-3), 4)


def show(payload: dict) -> None:
    """The table a person reads: seconds by both clocks, GiB above the loaded model."""
    print(f"{'':14}{'min':>8}{'median':>8}{'max':>8}")
    for clock, times in payload["seconds"].items():
        for name, row in (times | {"ratio": payload["time_ratio"][clock]}).items():
            cells = "".join(f"{row[key]:8.2f}" for key in ("min", "median", "max"))
            print(f"{clock + ' ' + name:14}{cells}")
    cells = "  ".join(
        f"{name} {figures['increase_gib']}" for name, figures in payload["memory"].items()
    )
    print(f"GiB above the loaded model: {cells}  ratio {payload['memory_ratio']}")
    fraction = payload["flops"]["fraction"]
    print(
        "FLOP/s over a plain matrix product's: {min:.2f} {median:.2f} {max:.2f}".format(**fraction)
    )


if __name__ == "__main__":
    main()
