"""A folder (or one Parquet file) -> its runs, their steps, their training curves.

The only place that turns a name from the page into a path: names are looked up among the entries
that were listed, never joined to a path, and links that lead outside the folder are not followed.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from spo.inspector.bounded import is_number, is_regular

STEP_FOLDERS = ("rollouts", "completions", "completions/train", "completions/eval")
"""Where a run keeps its files: this project's trainer, and TRL's trainers."""

EVALUATIONS = "eval"
NO_CURVES: dict[str, list[list[float]]] = {}
PARQUET_MAGIC = b"PAR1"
MAX_METRICS_BYTES = 64 << 20
STEPS_ANEW = 0.5
"""Seconds for which the step files of a run are taken to be the same."""
LIST_ANEW = 1_000_000_000
"""Nanoseconds after a change during which a folder is listed at every look."""


@dataclass(frozen=True)
class Steps:
    """The step files of one run, ascending, and the ones left out with the reason."""

    paths: dict[int, Path]
    skipped: dict[str, str]


class Folder:
    """What the person pointed the inspector at.

    Raises:
        ValueError: the path does not exist, or holds no rollout file.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.exists():
            raise ValueError(f"{root} does not exist.")
        self.boundary = self.root.resolve()
        self.seen: dict[str, tuple[float, Steps]] = {}
        if self.root.is_file() and self.root.suffix != ".parquet":
            raise ValueError(f"{root} is no Parquet file; give a run folder or a .parquet file.")
        if not self.runs():
            raise ValueError(
                f"{root} holds no rollout files (rollouts/step-*.parquet). Training writes them "
                "with save_rollouts_steps > 0."
            )

    def runs(self) -> dict[str, Path]:
        """Run name -> folder, newest last: the root itself, or the runs inside it.

        Evaluations a run saved count as a run named `<run>/eval`, listed before it.
        """
        if self.root.is_file() or step_files(self.root):
            found = [(self.boundary.name, self.root)]
        elif self.root.is_dir():
            children = [entry for entry in self.root.iterdir() if entry.is_dir()]
            inside = [entry for entry in children if self.is_inside(entry) and step_files(entry)]
            found = [(entry.name, entry) for entry in sorted(inside, key=last_change)]
        else:
            found = []
        runs = {}
        for name, path in found:
            if not path.is_file() and step_files(path, EVALUATIONS):
                runs[f"{name}/{EVALUATIONS}"] = path
            runs[name] = path
        return runs

    def steps(self, run: str) -> Steps:
        """The readable step files of a run, and the others with the reason, looked at
        again after STEPS_ANEW: one answer asks several times, and each looks at every file."""
        at, found = self.seen.get(run, (-STEPS_ANEW, None))
        if time.monotonic() - at > STEPS_ANEW:
            found = self._steps(run)
            self.seen[run] = (time.monotonic(), found)
        return found

    def _steps(self, run: str) -> Steps:
        paths, skipped = {}, {}
        for step, path, inside in self._files(run):
            if not inside:
                skipped[path.name] = "leads outside the folder"
            elif not closes_as_parquet(path):
                damaged = "half-written or damaged"
                skipped[path.name] = damaged if is_regular(path) else "no regular file"
            else:
                paths.setdefault(step, path)
        return Steps(dict(sorted(paths.items())), skipped)

    def step_path(self, run: str, step: int) -> Path:
        """The file of one step; only this one is opened."""
        for _, path, inside in self._files(run, step):
            if inside and closes_as_parquet(path):
                return path
        raise ValueError(f"Run {run} has no readable step {step}.")

    def _files(self, run: str, only: int | None = None) -> Iterator[tuple[int, Path, bool]]:
        """(step, path, whether it stays in the folder once links are followed) of each file, or of
        those of one step."""
        kind = EVALUATIONS if run.endswith(f"/{EVALUATIONS}") else ""
        files = step_files(self._run(run), kind)
        home = files[0].parent.resolve()
        at_home = self.root.is_file() or home.is_relative_to(self.boundary)
        for position, path in enumerate(files):
            step = step_number(path, default=position)
            if only in (None, step):
                yield step, path, self.is_inside(path) if path.is_symlink() else at_home

    def curves(self, run: str) -> dict[str, list[list[float]]]:
        """Every numeric key of metrics.jsonl -> [[step, value], …], by step.

        A resumed run writes steps again: the last value of a step counts.
        """
        path = self._run(run) / "metrics.jsonl"
        if self.root.is_file() or not path.is_file() or not self.is_inside(path):
            return NO_CURVES
        stat = path.stat()
        return read_metrics(path, stat.st_mtime_ns, stat.st_size)

    def _run(self, name: str) -> Path:
        runs = self.runs()
        if name not in runs:
            raise ValueError(f"There is no run {name!r} here.")
        return runs[name]

    def is_inside(self, path: Path) -> bool:
        """Whether a path stays in the folder once links are followed."""
        try:
            return path.resolve().is_relative_to(self.boundary)
        except (OSError, RuntimeError):  # a link to itself
            return False


@lru_cache(maxsize=4)
def read_metrics(path: Path, mtime_ns: int, size: int) -> dict[str, list[list[float]]]:
    with path.open("rb") as file:
        lines = file.read(MAX_METRICS_BYTES).splitlines()
    curves: dict[str, dict[float, float]] = {}
    for line in lines:
        for key, (step, value) in metric_points(line):
            curves.setdefault(key, {})[step] = value
    curves.pop("step", None)
    return {
        key: [list(point) for point in sorted(by_step.items())] for key, by_step in curves.items()
    }


def step_files(run: Path, kind: str = "") -> list[Path]:
    """The Parquet files of a run, by name; temporary files start with a dot.

    Args:
        kind: "" for training steps, EVALUATIONS for `eval-step-*.parquet`.
    """
    if run.is_file():
        return [run] if not kind else []
    for folder in (run, *(run / name for name in STEP_FOLDERS)):
        files = parquet_files(folder, kind)
        if files:
            return files
    return []


def parquet_files(folder: Path, kind: str) -> list[Path]:
    """The Parquet files of one folder, listed anew when the folder has changed."""
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:  # not there
        return []
    if time.time_ns() - changed < LIST_ANEW:
        changed = -time.time_ns()  # its clock may stand still within a tick: do not remember
    return _listed(folder, kind, changed)


@lru_cache(maxsize=256)
def _listed(folder: Path, kind: str, changed: int) -> list[Path]:
    names = os.listdir(folder) if folder.is_dir() else []
    names = [name for name in names if name.endswith(".parquet") and name[0] != "."]
    files = sorted(name for name in names if name.startswith("eval-step-") == bool(kind))
    return [folder / name for name in files]


def last_change(run: Path) -> tuple[float, str]:
    """When a run wrote its last step: the newest run is the one to open."""
    files = step_files(run)
    try:
        return files[-1].stat().st_mtime, run.name
    except OSError:  # a link to itself, or deleted meanwhile
        return 0.0, run.name


def step_number(path: Path, default: int) -> int:
    """The number a file name ends with.

    >>> step_number(Path("step-000010.parquet"), default=0)
    10
    """
    digits = re.search(r"([0-9]{1,15})$", path.stem)
    return int(digits[1]) if digits else default


def closes_as_parquet(path: Path) -> bool:
    """Whether a file ends as Parquet does: one being written, or cut short, does not."""
    try:
        stat = path.stat()
    except (OSError, RuntimeError):  # deleted since it was listed, or a link to itself
        return False
    if not S_ISREG(stat.st_mode):  # a pipe would be waited for
        return False
    return _closes(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _closes(path: Path, size: int, mtime_ns: int) -> bool:
    """The same, remembered until the file changes: a page asks it of thousands of files."""
    if size < 12:
        return False
    try:
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            return file.read(4) == PARQUET_MAGIC
    except OSError:  # unreadable, or deleted meanwhile
        return False


def metric_points(line: bytes) -> list[tuple[str, list[float]]]:
    """One line of metrics.jsonl -> (key, [step, value]) of its numbers.

    A line that is no JSON object (the last one while training writes) has none.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return []
    if not isinstance(entry, dict) or not is_number(entry.get("step")):
        return []
    return [(key, [entry["step"], value]) for key, value in entry.items() if is_number(value)]
