"""Every kind of run on a pretend accelerator, which refuses mixed devices and counts waits."""

import json
import subprocess
import sys

import pretend_runs
import pytest
import tiny_runs as runs


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """PyTorch allows such a device once per process, and then it stays."""
    folder = tmp_path_factory.mktemp("pretend")
    script = runs.REPO / "tests" / "pretend_runs.py"
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("case", pretend_runs.CASES)
def test_a_run_computes_on_the_device_what_it_computes_on_the_cpu(case, results):
    found = results[case]
    assert found["devices"] == ["pretend"]
    steps = [line for line in found["metrics"] if "reward" in line]
    assert len(steps) == pretend_runs.STEPS
    assert {"grad_norm", "spo/policy_loss"} <= set(steps[0])
    for line in found["metrics"]:
        for name, (ours, cpus) in line.items():
            assert ours == pytest.approx(cpus, rel=1e-5, abs=1e-7), name


def test_a_checkpoint_resumes_on_the_device(results):
    assert results["resume"]["same"]
    assert results["resume"]["same_metrics"]
    assert results["resume"]["optimizer_on"] == ["pretend"]


@pytest.mark.parametrize("case", pretend_runs.CASES)
def test_the_host_does_not_wait_for_every_parameter_or_token(case, results):
    """Of two steps with one micro-batch each: two networks are updated, or one."""
    waits = {phase: sum(found.values()) for phase, found in results[case]["waits"].items()}
    networks = 1 + any("spo/value_loss" in line for line in results[case]["metrics"])
    assert waits["credit"] == 0
    assert waits["score"] <= 20 * pretend_runs.STEPS
    assert waits["update"] <= 30 * networks * pretend_runs.STEPS
    assert results[case]["parameters"] * 2 > 30, "too few to tell"
    beyond = waits["generate"] - 30 * pretend_runs.STEPS
    assert beyond <= pretend_runs.WAITS_PER_TOKEN * results[case]["tokens"]


def test_prompts_of_one_length_are_sampled_without_a_look_at_every_token(results):
    """Which rows have ended is asked after every eighth token; those that have leave the batch."""
    found = results["equally long"]
    waits = found["waits"]["generate"]
    reads = waits.get("_local_scalar_dense", 0) + waits.get("nonzero", 0)
    assert found["tokens"] >= 48
    assert reads <= found["tokens"] / 4
