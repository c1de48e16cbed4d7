"""Training with vLLM itself. Slow, and in need of an environment of its own:

scripts/vllm_env.sh build/vllm cpu
SPO_VLLM_PYTHON=build/vllm/bin/python python -m pytest -m slow tests/test_vllm_real.py
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_runs as runs
import torch
from peft import LoraConfig
from tiny import EOS, tiny_llama

from spo.generation import vllm

sys.path.insert(0, str(runs.REPO / "benchmarks"))

from vllm_server import VllmServer

PYTHON = os.environ.get("SPO_VLLM_PYTHON")
MEAN = "sampling/sampling_logp_difference/mean"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="SPO_VLLM_PYTHON names no Python that has vLLM"),
]


def policy():
    """Heads of width 32, the smallest that vLLM's attention takes; ragged completions."""
    model = tiny_llama(hidden_size=128)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    model.generation_config.eos_token_id = [EOS, *range(40)]
    return model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    model = runs.folder(folder / "model", policy())
    started = VllmServer(PYTHON, model, runs.free_port(), folder / "log", length=256)
    started.start()
    yield started
    started.stop()


def make_trainer(folder, server, **given):
    settings = {"max_steps": 3, "learning_rate": 0.01, "temperature": 0.8, "value_model": "policy"}
    settings["max_completion_length"] = 24
    return runs.make_trainer(
        folder,
        model=policy(),
        peft_config=LoraConfig(**runs.LORA),
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=server.url,
        **settings | given,
    )


def means(folder):
    return [line[MEAN] for line in runs.metrics_of(folder) if MEAN in line]


def test_every_step_samples_from_the_policy_as_it_is(server, tmp_path):
    trainer = make_trainer(tmp_path / "run", server, max_completion_length=8)
    before = runs.weights_of(trainer)
    trainer.train()
    apart = means(tmp_path / "run")
    assert len(apart) == 3
    assert max(apart) < 1e-4
    assert runs.largest_difference(before, runs.weights_of(trainer)) > 0.1
    batch = runs.rollouts_of(tmp_path / "run")[0].rollouts
    ends = set(trainer.sampling_params.eos_token_ids)
    assert {ids[-1] in ends for ids in batch.ragged_token_ids} == {True, False}
    assert [ids[-1] not in ends for ids in batch.ragged_token_ids] == batch.truncated.tolist()
    assert not any(ends & set(ids[:-1]) for ids in batch.ragged_token_ids)


def test_an_adapter_that_stays_behind_is_seen(server, tmp_path):
    """The control: the first adapter is sent under the name of every later one."""
    trainer = make_trainer(tmp_path / "run", server, learning_rate=0.003)
    ask, paths = trainer.generator.client.ask, []

    def send_the_first(route, body=None):
        if route == "/v1/load_lora_adapter":
            paths.append(body["lora_path"])
            body = body | {"lora_path": str(kept)}
        return ask(route, body)

    trainer.generator.client.ask = send_the_first
    kept = vllm.write_adapter(trainer.policy, tmp_path)
    trainer.train()
    assert len(set(paths)) == 3
    first, *later = means(tmp_path / "run")
    assert first < 1e-4
    assert min(later) > 100 * first


def test_a_greedy_completion_is_the_samplers(server, tmp_path):
    """Evaluation at temperature 0 says the same with vLLM and without."""
    with_vllm = make_trainer(tmp_path / "vllm", server, eval_dataset=runs.prompts(8))
    own = runs.make_trainer(
        tmp_path / "own",
        model=policy(),
        peft_config=LoraConfig(**runs.LORA),
        eval_dataset=runs.prompts(8),
        max_completion_length=24,
    )
    assert with_vllm.evaluate() == own.evaluate()


def test_the_script_trains_and_survives_a_restart(server, tmp_path):
    """The server is killed under the run, starts again without the adapter, and the run goes on."""
    flags = {
        "model_name_or_path": server.model,
        "dataset_name": "reasoning_gym/chain_sum",
        "eval_size": 0,
        "reward_funcs": "reasoning_gym",
        "use_peft": True,
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": server.url,
        "output_dir": tmp_path / "run",
        "max_steps": 6,
        "max_completion_length": 32,
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 0.003,
    }
    command = [sys.executable, "train_spo.py", *(f"--{k}={v}" for k, v in flags.items())]
    script = subprocess.Popen(
        command, cwd=runs.REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    server.stop(signal.SIGKILL)
    server.start()
    output, _ = script.communicate(timeout=300)
    assert script.returncode == 0, output
    assert "does not answer" in output
    apart = means(tmp_path / "run")
    assert len(apart) == 6
    assert max(apart) < 1e-4


def test_the_same_seeds_say_the_same_again(server, tmp_path):
    """Every row has its own seed: two runs agree, and the completions of one prompt do not."""
    for name in ("a", "b"):
        make_trainer(tmp_path / name, server, max_steps=1).train()
    a, b = (runs.rollouts_of(tmp_path / name)[0].rollouts for name in ("a", "b"))
    assert a.ragged_token_ids == b.ragged_token_ids
    assert len({tuple(ids) for ids in a.ragged_token_ids}) == 8
    np.testing.assert_allclose(a.token_logprobs_sampler, b.token_logprobs_sampler, atol=1e-4)
