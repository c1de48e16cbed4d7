"""Signals: the step is finished, a complete checkpoint is there, and nobody is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_elsewhere
import tiny_runs as runs

from spo.run.checkpoint import checkpoints_in, damage
from spo.run.signals import Signals

STEPS = 400
FLAGS = [f"--max_steps={STEPS}", "--save_minutes=0", "--value_model_path=policy"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    runs.script_inputs(folder)
    return folder


def start(inputs: Path, run: Path, *flags: str, launcher: str = "") -> subprocess.Popen:
    """train_spo.py by itself or under `accelerate launch`."""
    command = [sys.executable, *launcher.split(), "train_spo.py", *runs.script_flags(run), *FLAGS]
    command = [part.replace(str(run.parent), str(inputs)) for part in command]
    return subprocess.Popen(
        [*command, f"--output_dir={run}", *flags],
        cwd=runs.REPO,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=run.with_suffix(".log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,  # signals go to this process alone, as `kill PID` sends them
    )


def wait_for_steps(run: Path, process: subprocess.Popen, steps: int = 2, limit: int = 400) -> None:
    until = time.monotonic() + limit
    while not (run / "metrics.jsonl").exists() or len(runs.metrics_of(run)) < steps:
        assert process.poll() is None, run.with_suffix(".log").read_text()
        assert time.monotonic() < until, run.with_suffix(".log").read_text()
        time.sleep(0.05)


def trainers_of(run: Path) -> list[int]:
    """Processes of train_spo.py that write to this run."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--output_dir={run}" in words:
            found.append(int(command.parent.name))
    return found


def wait_until_nobody_writes(run: Path, limit: int = 200) -> None:
    until = time.monotonic() + limit
    while trainers_of(run):
        assert time.monotonic() < until, run.with_suffix(".log").read_text()
        time.sleep(0.1)


def assert_checkpoint_of_the_last_step(run: Path) -> None:
    newest = checkpoints_in(run)[-1]
    assert damage(newest) is None
    assert int(newest.name.removeprefix("checkpoint-")) == runs.metrics_of(run)[-1]["step"] < STEPS
    assert not list(run.glob(".*.tmp"))


NAMES = ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT", "SIGUSR2", "SIGXCPU"]


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[1:])]
)
def test_a_signal_finishes_the_step_and_saves_a_checkpoint(name, inputs, tmp_path):
    run = tmp_path / "run"
    process = start(inputs, run)
    wait_for_steps(run, process)
    process.send_signal(getattr(signal, name))
    assert process.wait(60) == 128 + getattr(signal, name)
    assert_checkpoint_of_the_last_step(run)
    printed = run.with_suffix(".log").read_text()
    assert (
        len(re.findall(rf"^{name}: step \d+ is finished and saved in .*auto\.$", printed, re.M))
        == 1
    )
    assert "Traceback" not in printed


@pytest.mark.slow
def test_the_same_line_goes_on_after_a_signal(inputs, tmp_path):
    """As a queue would start it again and again."""
    run = tmp_path / "run"
    for steps in (2, 6):
        process = start(inputs, run, "--resume_from_checkpoint=auto")
        wait_for_steps(run, process, steps)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert_checkpoint_of_the_last_step(run)
    steps = [line["step"] for line in runs.metrics_of(run)]
    assert steps == [*range(1, len(steps) + 1)]


def test_a_second_signal_stops_at_once(tmp_path):
    """In a step that would take a minute."""
    log = tmp_path / "log"
    process = run_elsewhere.start("endless_step", tmp_path / "run", log)
    until = time.monotonic() + 60
    while not (tmp_path / "run" / "waiting").exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None, "the first one lets the step go on"
    process.terminate()
    assert process.wait(5) == -signal.SIGTERM
    assert not checkpoints_in(tmp_path / "run")


LAUNCH = "-m accelerate.commands.launch --cpu --num_processes=1 --num_machines=1 "
LAUNCH += "--mixed_precision=no --dynamo_backend=no --num_cpu_threads_per_process=1"


def launch(processes: int) -> str:
    """`accelerate launch` hands several processes to torchrun, which on a CPU has to be named."""
    if processes == 1:
        return LAUNCH
    port = f"--master_port={runs.free_port()}"
    return f"-m torch.distributed.run --nproc_per_node={processes} {port}"


HOW = [
    ("1", "SIGKILL"),
    ("1", "SIGTERM"),
    ("2", "SIGTERM"),
    ("2", "SIGKILL"),
    ("2", "SIGUSR1"),
]


@pytest.mark.parametrize(
    ("processes", "name"),
    [HOW[0], *(pytest.param(*how, marks=pytest.mark.slow) for how in HOW[1:])],
)
def test_nobody_outlives_the_launcher(processes, name, inputs, tmp_path):
    """However it ends, its trainers finish their step, save, and are gone."""
    run = tmp_path / "run"
    per_device = f"--per_device_train_batch_size={8 // int(processes)}"
    process = start(inputs, run, per_device, launcher=launch(int(processes)))
    wait_for_steps(run, process)
    assert len(trainers_of(run)) == int(processes) + 1
    process.send_signal(getattr(signal, name))
    process.wait(60)
    wait_until_nobody_writes(run)
    assert_checkpoint_of_the_last_step(run)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_in_a_terminal_is_one_signal(processes, inputs, tmp_path):
    """The terminal sends it to launcher and trainers, and the launcher sends it on."""
    run = tmp_path / "run"
    per_device = f"--per_device_train_batch_size={8 // processes}"
    process = start(inputs, run, per_device, launcher=launch(processes))
    wait_for_steps(run, process)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    wait_until_nobody_writes(run)
    assert_checkpoint_of_the_last_step(run)
    assert run.with_suffix(".log").read_text().count("SIGINT: step") == 1


@pytest.mark.slow
def test_one_signalled_process_of_two_stops_both(inputs, tmp_path):
    run = tmp_path / "run"
    process = start(inputs, run, "--per_device_train_batch_size=4", launcher=launch(2))
    wait_for_steps(run, process)
    others = [pid for pid in trainers_of(run) if pid != process.pid]
    os.kill(max(others), signal.SIGUSR1)
    wait_until_nobody_writes(run)
    assert_checkpoint_of_the_last_step(run)


def test_what_a_program_does_with_signals_is_its_own(monkeypatch):
    """Ignored ones stay ignored (nohup), own handlers stay, and ours are gone afterwards."""
    got = []
    own = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with Signals() as signals:
            for number in (signal.SIGUSR1, signal.SIGHUP):
                os.kill(os.getpid(), number)
            assert signals.number is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.number == signal.SIGTERM
        assert got == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGUSR1, own)
        signal.signal(signal.SIGHUP, hangup)


def test_a_launcher_that_repeats_a_signal_is_no_second_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with Signals() as signals:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.number == signal.SIGTERM
