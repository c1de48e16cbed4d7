"""Runs that are killed, at every file they touch and at random times -> they go on bit for bit.

python tests/faults/kills.py 130 --seed 0      # so many killed runs, spread over all kinds

One process imports everything and forks each run, so that a kill costs a second.
"""

import argparse
import collections
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import pyarrow.parquet as pq
import tiny_runs as runs
from peft import LoraConfig

from spo.rollouts import load_rollouts
from spo.run.checkpoint import damage, numbered

STEPS = 3
LIMIT = 120
"""Seconds that a run may take on a loaded machine."""

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
KINDS = {"full": 1, "lora": 1, "two": 2}
"""Kinds of runs and their processes."""


@dataclass(frozen=True)
class Moment:
    """When a run dies: at the n-th file operation in its folder, or after so many seconds, by a
    signal that may also ask it to finish its step."""

    operation: int | None = None
    seconds: float | None = None
    number: int = signal.SIGKILL


# --- runs in processes of their own ----------------------------------------------------------


def train(kind: str, folder: Path) -> None:
    """One line for start and resume; everything that a checkpoint has to restore takes part."""
    lora = {"peft_config": LoraConfig(lora_dropout=0.1, **runs.LORA)} if kind != "full" else {}
    trainer = runs.make_trainer(
        folder,
        value_model="policy",
        value_features="surprisal",
        per_device_train_batch_size=8 // KINDS[kind],
        lr_scheduler_type="cosine",
        eval_dataset=runs.prompts(2),
        eval_steps=2,
        max_steps=STEPS,
        save_steps=1,
        save_total_limit=2,
        resume_from_checkpoint="auto",
        **lora,
    )
    trainer.train()
    np.savez(folder.with_suffix(f".{os.environ.get('RANK', 0)}.npz"), **runs.weights_of(trainer))


def die_at(operation: int, folder: Path, log: Path) -> None:
    """Kill this process at the n-th file operation in the folder; the log says which it was."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in EVENTS or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        if not isinstance(path, str) or not f"{path}/".startswith(f"{folder}/"):
            return
        count += 1
        if count == operation:
            log.write_text(f"{event} {path.removeprefix(str(folder))}")
            os.kill(os.getpid(), signal.SIGKILL)
        elif operation == 0:
            log.with_suffix(".count").write_text(str(count))

    sys.addaudithook(hook)


def fork(kind: str, folder: Path, rank: int, port: int, moment: Moment | None) -> int:
    """Start one process of a run; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if KINDS[kind] > 1:
            world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank))
        if moment is not None and moment.operation is not None:
            die_at(moment.operation, folder, folder.with_suffix(".moment"))
        train(kind, folder)
        code = 0
    finally:
        if code:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(kind: str, folder: Path, moment: Moment | None = None, victim: int = 0) -> bool:
    """A run, whole or killed at a moment; whether all of it came to its end."""
    port = runs.free_port()
    moments = [moment if rank == victim else None for rank in range(KINDS[kind])]
    children = [fork(kind, folder, rank, port, m) for rank, m in enumerate(moments)]
    begun, ended, sent, codes = time.monotonic(), None, False, {}
    while len(codes) < len(children):
        for child in children:
            if child in codes:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                ended = ended or time.monotonic()
        spent = time.monotonic() - begun
        late = moment is not None and moment.seconds is not None and spent > moment.seconds
        if late and not sent and children[victim] not in codes:
            os.kill(children[victim], moment.number)
            sent = True
        alone = ended is not None and len(codes) < len(children) and time.monotonic() - ended > 5
        if alone or spent > LIMIT:  # a launcher ends the others of one that died
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
        assert spent < LIMIT + 10, f"{kind} hangs: {tail(folder)}"
        time.sleep(0.01)
    return set(codes.values()) == {0}


def tail(folder: Path) -> str:
    log = folder.with_suffix(".log")
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


# --- what must hold --------------------------------------------------------------------------


def assert_nothing_half(folder: Path, at: str) -> None:
    """Right after a kill: what is there under its name is whole."""
    for _, path in numbered(folder):
        assert damage(path) is None, f"{path}: {damage(path)}, killed at {at}"
    for path in folder.glob("rollouts/*.parquet"):
        load_rollouts(path)
    for name in ("spo_config.json", "spo_run.json"):
        path = folder / name
        assert not path.exists() or path.read_text().rstrip().endswith("}"), f"{path}, {at}"


def assert_same_run(folder: Path, whole: Path, at: str) -> None:
    """In the end: the weights, metrics and rollouts of a run that was not killed."""
    for path in sorted(whole.parent.glob(f"{whole.name}.*.npz")):
        found = folder.with_suffix(path.suffixes[-2] + path.suffixes[-1])
        assert runs.same_bits(dict(np.load(path)), dict(np.load(found))), f"weights, {at}"
    assert runs.metrics_of(folder) == runs.metrics_of(whole), f"metrics, {at}"
    names = sorted(path.name for path in (whole / "rollouts").glob("*.parquet"))
    assert sorted(path.name for path in (folder / "rollouts").glob("*.parquet")) == names, at
    for name in names:
        tables = [pq.read_table(run_ / "rollouts" / name) for run_ in (whole, folder)]
        assert tables[0].equals(tables[1]), f"{name}, {at}"
    left = [path.name for path in folder.rglob(".*") if not path.name.startswith(".spo")]
    assert not left, f"{left}, {at}"
    kept = [number for number, _ in numbered(folder)]
    assert kept == [number for number, _ in numbered(whole)], f"{kept}, {at}"


# --- the campaign ----------------------------------------------------------------------------


def campaign(kills: int, seed: int, kinds: list[str], root: Path) -> collections.Counter:
    """So many killed runs, by kind of moment; each is resumed to its end and compared."""
    draw = random.Random(seed)
    counted: collections.Counter = collections.Counter()
    wholes, operations, seconds = {}, {}, {}
    for kind in kinds:
        wholes[kind] = root / f"whole-{kind}"
        begun = time.monotonic()
        assert run(kind, wholes[kind], Moment(operation=0)), tail(wholes[kind])
        seconds[kind] = time.monotonic() - begun
        operations[kind] = int(wholes[kind].with_suffix(".count").read_text())
    turns = itertools.cycle(kinds)
    while counted["kills"] < kills:
        kind = next(turns)
        victim, told = draw.randrange(KINDS[kind]), []
        plan = (draw, operations[kind] // (1 + 6 * victim), seconds[kind])  # process 1 writes less
        moments = [_moment(*plan)]
        if draw.random() < 0.25:
            moments.append(_moment(draw, plan[1] // STEPS, plan[2] / 2))
        folder = root / f"killed-{counted['runs']}"
        killed = 0
        for moment in moments:
            if run(kind, folder, moment, victim):
                break  # it was faster
            killed += 1
            named = folder.with_suffix(".moment")
            at = f"{signal.Signals(moment.number).name} at {moment.seconds or 0:.2f} s"
            at = named.read_text() if named.exists() else at
            named.unlink(missing_ok=True)
            told.append(f"{kind}, process {victim}: {at}")
            counted[f"{kind}: {_kind_of(at)}"] += 1
            assert_nothing_half(folder, str(told))
        counted += collections.Counter({"runs": 1, "kills": killed, "killed twice": killed > 1})
        assert run(kind, folder), f"{told}: {tail(folder)}"
        assert_same_run(folder, wholes[kind], str(told))
        shutil.rmtree(folder)
        for path in root.glob(f"{folder.name}.*"):
            path.unlink()
    return counted


def _moment(draw: random.Random, operations: int, seconds: float) -> Moment:
    """Mostly at a file operation, else at any time, and then often by a signal that can wait."""
    if draw.random() < 0.7:
        return Moment(operation=draw.randint(1, operations))
    number = draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1))
    return Moment(seconds=draw.uniform(0.05, seconds), number=number)


def _kind_of(at: str) -> str:
    """ "open /checkpoint-000002/optimizer.bin" -> "open checkpoint"."""
    if " /" not in at and not at.startswith(EVENTS):
        return f"{at.split()[0]} at a random time"
    event, _, path = at.partition(" ")
    names = ("checkpoint", "rollouts", "metrics", ".model", ".dry-save", "spo_run", "spo_config")
    return f"{event} {next((name for name in names if name in path), 'other')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        counted = campaign(given.kills, given.seed, given.kinds, Path(root))
    for name, count in sorted(counted.items()):
        print(f"{count:5d}  {name}")
    print(f"all went on bit for bit, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
