"""train_spo.py with a vLLM server: one process and two, and what it says where there is none."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs as runs
from vllm_stand_in import StandIn

ONE = ()
TWO = ("-m", "torch.distributed.run", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    runs.script_inputs(folder)
    return folder


def train(inputs, name, url, launcher, rows, *flags):
    """Two steps with the server at `url`; `rows` completions per process."""
    if launcher:
        launcher = (*launcher, f"--master_port={runs.free_port()}")
    command = [sys.executable, *launcher, "train_spo.py", *runs.script_flags(inputs / name, rows)]
    command += ["--use_peft", "--use_vllm", "--vllm_mode=server", f"--vllm_server_base_url={url}"]
    return subprocess.run(
        [*command, "--learning_rate=0.02", "--dataset_test_split=train", *flags],
        cwd=runs.REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_two_processes_ask_for_their_own_rows(inputs):
    """Both train as one does; each adapter is sent once, by the main process."""
    with StandIn(runs.policy()) as server:
        for name, launcher, rows in (("one", ONE, 8), ("two", TWO, 4)):
            server.restart()
            done = train(inputs, name, server.url, launcher, rows)
            assert done.returncode == 0, done.stderr[-3000:]
        assert len(server.loaded) == 6
        assert len(set(server.loaded[:3])) == len(set(server.loaded[3:])) == 3
        asked = [body for body in server.bodies if body["top_k"] != 1]  # that is its test
    assert len(asked) == 2 * (8 + 8 + 8 + 8)  # evaluation, two steps, evaluation
    for one, two in zip(*(runs.rollouts_of(inputs / name) for name in ("one", "two")), strict=True):
        assert one.rollouts.ragged_token_ids == two.rollouts.ragged_token_ids
        apart = two.rollouts.token_logprobs_sampler - two.rollouts.token_logprobs_old
        assert np.abs(apart).max() < 1e-5


@pytest.mark.parametrize("launcher", [ONE, TWO], ids=["one", "two"])
def test_without_a_server_the_script_ends_with_one_sentence(inputs, launcher):
    url = f"http://127.0.0.1:{runs.free_port()}"
    name = f"none-{len(launcher)}"
    done = train(inputs, name, url, launcher, 8 - len(launcher) // 3 * 4, "--vllm_server_timeout=1")
    assert done.returncode != 0
    assert f"train_spo.py: vLLM at {url} gave no answer for 1 seconds" in done.stderr
    assert 'train_spo.py", line' not in done.stderr
