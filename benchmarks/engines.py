"""Tokens a second of each engine, and how far its log-probs are from the trainer's.

python benchmarks/engines.py                       # in a Python that has vLLM: docs/engines.md
python benchmarks/engines.py --dtype bfloat16 --name engines_bfloat16

A random Llama with an adapter that is not zero; all engines complete the same prompts in turns, on
one machine.
"""

import argparse
import atexit
import socket
import sys
import tempfile
from pathlib import Path

import common
import numpy as np
import torch
from vllm_server import VllmServer

from spo import SPOConfig, SPOTrainer
from spo.data import load_dataset_by_name
from spo.generation.sampler import Sampler
from spo.networks.loading import lora_config
from spo.scoring import token_columns

QUICKSTART = common.ROOT / "assets" / "quickstart"


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        engines, trainer = start(options, Path(folder))
        rows = measure(engines, trainer, options)
    shape = f"{options.hidden_size} wide, {options.layers} layers, {options.dtype}"
    payload = {"shape": shape, "completions": options.completions, "rows": rows}
    common.write_result(options.name, payload, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without_vllm", action="store_true", help="our own sampler alone")
    parser.add_argument("--name", default="engines")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    return parser.parse_args()


def start(options: argparse.Namespace, folder: Path):
    """The engines by name, and the trainer whose policy they sample from."""
    model = make_model(options, folder / "model")
    trainer = make_trainer(options, model, folder / "trainer")
    engines = {"own sampler": Sampler(trainer.policy, seed=0)}
    if options.without_vllm:
        return engines, trainer
    server = VllmServer(sys.executable, model, free_port(), folder / "log", 256, options.dtype)
    atexit.register(server.stop)
    server.start()
    settings = {"use_vllm": True, "vllm_server_base_url": server.url, "vllm_max_model_length": 256}
    for mode in ("server", "colocate"):
        other = make_trainer(options, model, folder / mode, vllm_mode=mode, **settings)
        other.generator.policy = trainer.policy
        other.generator.load(trainer.policy)
        engines[f"vLLM {mode}"] = other.generator
    return engines, trainer


def make_model(options: argparse.Namespace, folder: Path) -> str:
    """A random Llama with heads of width 64 and the quickstart's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden_size // 64,
        num_key_value_heads=options.hidden_size // 64,
        max_position_embeddings=512,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
        initializer_range=0.08,
    )
    LlamaForCausalLM(config).to(getattr(torch, options.dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(QUICKSTART).save_pretrained(folder)
    return str(folder)


def make_trainer(options: argparse.Namespace, model: str, folder: Path, **settings) -> SPOTrainer:
    """A trainer of that model, with an adapter that moves its log-probs."""
    torch.manual_seed(0)
    args = SPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=options.dtype == "bfloat16",
        per_device_train_batch_size=options.completions,
        max_completion_length=options.length,
        model_init_kwargs={"dtype": options.dtype},
        **settings,
    )
    problems = load_dataset_by_name("reasoning_gym/chain_sum", options={"size": 64})
    trainer = SPOTrainer(
        model, "reasoning_gym", args, problems, peft_config=lora_config(16, 32, 0.0, "all-linear")
    )
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return trainer


def measure(engines: dict, trainer: SPOTrainer, options: argparse.Namespace) -> list[dict]:
    """Sample with each in turns; its log-probs beside the trainer's own pass."""
    prompts = trainer.prompts.batch(1)
    said = {}

    def run(name):
        said[name] = engines[name](prompts, trainer.sampling_params, 1)

    variants = {name: lambda name=name: run(name) for name in engines}
    seconds = common.alternate(variants, options.repetitions)["wall"]
    rows = []
    for name, completions in said.items():
        tokens = sum(map(len, completions.token_ids))
        own_pass = trainer.args
        own_pass.rollout_logprobs = "scoring"
        trainers = token_columns(completions, trainer.policy, None, own_pass)["token_logprobs_old"]
        theirs = completions.token_logprobs_sampler or completions.token_logprobs
        apart = np.abs(np.concatenate(trainers) - np.concatenate(theirs))
        rows.append(
            {
                "engine": name,
                "tokens": tokens,
                "tokens_per_second": common.spread(tokens / s for s in seconds[name]),
                "logprob_difference_mean": float(apart.mean()),
                "logprob_difference_max": float(apart.max()),
            }
        )
    return rows


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
