"""train_spo.py on SmolLM2-135M, a real language model: three LoRA steps with a shared critic."""

import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from spo import SPOConfig
from spo.networks import build
from spo.networks.loading import load_tokenizer
from spo.rollouts import load_rollouts

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = Path(os.environ.get("SPO_SMOLLM2") or REPOSITORY / "models" / "SmolLM2-135M-Instruct")
FLAGS = {
    "config": REPOSITORY / "recipes" / "smollm2.yaml",
    "model_name_or_path": MODEL,
    "max_steps": 3,
    "eval_size": 0,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 32,
    "use_cpu": True,
    "report_to": "none",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not MODEL.is_dir(),
        reason=f"no {MODEL.name}: run scripts/fetch_smollm2.py, or set SPO_SMOLLM2 to its folder",
    ),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a finished run; prints what it cost."""
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    before = base_weights()
    flags = [f"--{name}={value}" for name, value in (FLAGS | {"output_dir": folder}).items()]
    flags += ["--reward_funcs", "math_verify", "soft_overlong"]  # the second is never all equal
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu"]
    begun = time.perf_counter()
    done = subprocess.run(
        [*launch, "train_spo.py", *flags], cwd=REPOSITORY, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    # never below what pytest itself held when it started the run: exec does not reset it
    gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n3 steps on {MODEL.name}: {seconds:.0f} s, peak memory {gib:.2f} GiB")
    assert base_weights() == before  # nothing wrote into the model's own folder
    return folder


def base_weights() -> bytes:
    return (MODEL / "model.safetensors").read_bytes()


def test_every_step_is_finite_and_its_rollouts_are_saved(run):
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "spo/policy_loss" in step]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        print({k: round(v, 2) for k, v in step.items() if k.startswith("time/")})
        for name in ("spo/policy_loss", "spo/value_loss", "grad_norm", "spo/value_grad_norm"):
            assert math.isfinite(step[name]), name
    for step in (1, 2, 3):
        rollouts = load_rollouts(run / "rollouts" / f"step-{step:06d}.parquet").rollouts
        assert len(rollouts) == 8
        assert np.isfinite(rollouts.token_logprobs_old[rollouts.completion_mask]).all()


def test_the_run_saved_adapters_only(run):
    """Nowhere a copy of the base: all that is saved is a tenth of it."""
    sizes = {path: path.stat().st_size for path in run.rglob("*.safetensors")}
    assert {run / "adapter_model.safetensors", run / "critic" / "adapter_model.safetensors"} <= (
        sizes.keys()
    )
    assert max(sizes.values()) < (MODEL / "model.safetensors").stat().st_size / 10
    for folder in (run, run / "critic"):
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            names = list(file.keys())
        assert all(".lora_" in name or name.endswith("score.weight") for name in names)


def test_adapter_and_critic_load_and_changed_something(run):
    """The base under the loaded adapter is the base; adapter and value head have moved."""
    plain = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, run, is_trainable=True)
    tokenizer = load_tokenizer(str(run))
    ids = torch.tensor([tokenizer("2 + 2 =")["input_ids"]])
    with torch.no_grad():
        trained = adapted(ids).logits
        with adapted.disable_adapter():
            base = adapted(ids).logits
    fresh = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(base, fresh(ids).logits)
    assert not torch.equal(trained, base)

    policy = build.build_policy(adapted)
    critic = build.build_critic(str(run / "critic"), policy, SPOConfig(), tokenizer)
    assert critic.head.weight.shape == (1, fresh.config.hidden_size)
    assert critic.head.weight.abs().sum() > 0  # it began at zero
