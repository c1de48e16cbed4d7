"""A run over its steps: the lines of its index and the curves of metrics.jsonl.

The trainer writes the index. For a run without one the lines are made from its Parquet files, in
the background, once: they are kept in the user's cache folder, never in the run.
"""

import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spo.inspector.folder import EVALUATIONS, Folder, step_files
from spo.inspector.reading import read_step
from spo.run import index

FIRST_LINES = 24
"""So many files are read at once before the first answer; the others in the background."""


SOURCE_EV = "explained_variance_by_source/"
"""What the explained variance of a value source is called, before its name."""


class Series(NamedTuple):
    """One number over the steps, ascending; NaN where it is unknown."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class History:
    """What is known of a run.

    Attributes:
        lines: the index lines of its training steps, ascending.
        evaluations: those of its saved evaluations.
        curves: metrics.jsonl, key -> [[step, value], …].
        progress: share of the saved steps that have a line.
        known, tables: the series of the index that were asked for already, and what they are of.
    """

    run: str
    lines: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    curves: dict[str, list[list[float]]]
    progress: float = 1.0
    known: dict[str, "Series | None"] = field(default_factory=dict)
    tables: dict[tuple[str, int], "np.ndarray | None"] = field(default_factory=dict)

    def series(self, name: str) -> Series | None:
        """A curve by the trainer's name, from metrics.jsonl or else from the index."""
        if name in self.curves:
            points = np.array(self.curves[name], dtype=np.float64)
            return Series(points[:, 0], points[:, 1])
        return self.indexed(name)

    def indexed(self, name: str) -> Series | None:
        """The same from the index alone; "eval/…" is that of its evaluations."""
        if name not in self.known:
            lines = self.evaluations if name.startswith("eval/") else self.lines
            plain = name.removeprefix("eval/")
            values = self._at_once(lines, plain)
            if values is None:
                values = np.array([line_number(line, plain) for line in lines], dtype=np.float64)
            steps = np.array([line["step"] for line in lines], dtype=np.float64)
            self.known[name] = Series(steps, values) if np.isfinite(values).any() else None
        return self.known[name]

    def _at_once(self, lines: list[dict[str, Any]], name: str) -> np.ndarray | None:
        """`line_number` of all lines in one go, where all have as many completions."""
        if name.startswith("rewards/") and name.endswith("/mean"):
            columns = [line.get("rewards_by_function") or {} for line in lines]
            if any(column.get(name[8:-5], 0) is not None for column in columns):
                return None
            name = "reward"  # in the index null stands for the reward itself
        match name:
            case "reward" | "reward_std" | "frac_reward_zero_std":
                table = self._table(lines, "reward")
            case "entropy":
                table = self._table(lines, "entropy")
            case "completions/mean_length":
                table = self._table(lines, "length")
            case _:
                return None
        sizes = {line["num_generations"] for line in lines}
        if table is None or len(sizes) != 1:
            return None
        known = np.isfinite(table)
        counts = np.where(known.any(1), known.sum(1), np.nan)
        means = np.where(known, table, 0.0).sum(1) / counts
        if name == "reward_std":
            squares = np.where(known, table - means[:, None], 0.0) ** 2
            return np.sqrt(squares.sum(1) / counts)
        if name != "frac_reward_zero_std":
            return means
        size = sizes.pop()
        if size < 1 or table.shape[1] % size:
            return None
        return contrast_lacks(table.reshape(len(table), -1, size))

    def _table(self, lines: list[dict[str, Any]], column: str) -> np.ndarray | None:
        """(S, B) numbers of a column; None where the lines differ in length or hold no numbers."""
        key = (column, id(lines))
        if key not in self.tables:
            self.tables[key] = None
            try:
                array = np.array([line.get(column) for line in lines], dtype=np.float64)
            except (ValueError, TypeError, OverflowError):
                return None
            fits = array.ndim == 2 and array.size and not (np.abs(array) >= 1e300).any()
            self.tables[key] = array if fits else None
        return self.tables[key]

    @property
    def reward_functions(self) -> list[str]:
        names = [name for line in self.lines[-1:] for name in line.get("rewards_by_function") or {}]
        found = (re.fullmatch("rewards/(.+)/mean", key) for key in self.curves)
        names += [match[1] for match in found if match]
        return list(dict.fromkeys(names))

    @property
    def value_sources(self) -> list[str]:
        """The terms of the critic, where there are several."""
        lines = [*self.lines[:1], *self.lines[-1:]]
        return list(dict.fromkeys(name for line in lines for name in value_sources(line)))


def numbers(column: Any) -> np.ndarray:
    """A list of the index as floats; null and what is no number become NaN."""
    if not isinstance(column, list):
        return np.zeros(0)
    try:
        array = np.array(column, dtype=np.float64)  # None becomes NaN
        if array.ndim == 1:
            return array
    except (ValueError, TypeError, OverflowError):
        pass  # a file from elsewhere: number by number
    known = [x if isinstance(x, int | float) and abs(x) < 1e300 else np.nan for x in column]
    return np.array(known, dtype=np.float64)


def line_number(line: dict[str, Any], name: str) -> float | None:
    """One number of an index line under the trainer's name for it."""
    match name:
        case "reward":
            return mean_or_none(numbers(line["reward"]))
        case "reward_std":
            rewards = numbers(line["reward"])
            known = rewards[np.isfinite(rewards)]
            return float(known.std()) if known.size else None
        case "entropy":
            return mean_or_none(numbers(line.get("entropy")))
        case "completions/mean_length":
            return mean_or_none(numbers(line["length"]))
        case "completions/clipped_ratio":
            return len(line["truncated"]) / max(len(line["reward"]), 1)
        case "frac_reward_zero_std":
            return without_contrast(numbers(line["reward"]), line["num_generations"])
        case "spo/explained_variance":
            return as_number(line.get("explained_variance"))
    if name.startswith("rewards/") and name.endswith("/mean"):
        return mean_or_none(function_rewards(line, name[8:-5]))
    if name.startswith(SOURCE_EV):
        return as_number(value_sources(line).get(name.removeprefix(SOURCE_EV)))
    return as_number(line.get(name))


def value_sources(line: dict[str, Any]) -> dict[str, Any]:
    """What each value source explains; nothing where there is one."""
    found = line.get("explained_variance_by_source")
    return found if isinstance(found, dict) else {}


def as_number(x: Any) -> float | None:
    return float(x) if isinstance(x, int | float) and abs(x) < 1e300 else None


def mean_or_none(x: np.ndarray) -> float | None:
    known = x[np.isfinite(x)]
    return float(known.mean()) if known.size else None


def function_rewards(line: dict[str, Any], name: str) -> np.ndarray:
    """What one reward function gave; in the index null stands for the reward itself."""
    columns = line.get("rewards_by_function") or {}
    if name not in columns:
        return np.zeros(0)
    return numbers(line["reward"] if columns[name] is None else columns[name])


def without_contrast(rewards: np.ndarray, num_generations: int) -> float | None:
    """The share of prompts whose known rewards are all equal."""
    if not rewards.size or num_generations < 1 or rewards.size % num_generations:
        return None
    return float(contrast_lacks(rewards.reshape(-1, num_generations)))


def contrast_lacks(groups: np.ndarray) -> np.ndarray:
    """(…, P, G) rewards -> the share of the P prompts whose G known rewards are equal."""
    low = np.where(np.isnan(groups), np.inf, groups).min(-1)
    high = np.where(np.isnan(groups), -np.inf, groups).max(-1)
    return (high - low <= 1e-8).mean(-1)


class Histories:
    """The histories of a folder's runs; asked again, they have grown."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.last: dict[str, tuple[tuple, History]] = {}  # run -> what it was made of, it
        self.made: dict[str, dict[tuple, dict | None]] = {}  # run -> file -> its line
        self.threads: dict[str, threading.Thread] = {}
        self.lock = threading.Lock()

    def get(self, run: str) -> History:
        """What is known now; the rest is being read meanwhile."""
        written = self._written(run)
        paths = self.folder.steps(run).paths
        evaluation = run.endswith(f"/{EVALUATIONS}")
        by_step = {line["step"]: line for line in written if line["evaluation"] == evaluation}
        missing = {step: path for step, path in paths.items() if step not in by_step}
        if missing:
            by_step |= self._make(run, missing)
        lines = [line for _, line in sorted(by_step.items()) if line]
        evaluations = [line for line in written if line["evaluation"] and not evaluation]
        progress = sum(step in by_step for step in paths) / max(len(paths), 1)
        curves = self.folder.curves(run)
        made_of = (id(written), id(curves), len(lines), progress)
        if self.last.get(run, ((), None))[0] != made_of:
            self.last[run] = (made_of, History(run, lines, evaluations, curves, progress))
        return self.last[run][1]

    def _written(self, run: str) -> list[dict]:
        """The trainer's index of a run; [] where it has none."""
        files = step_files(self.folder.runs()[run])
        path = files[0].parent / index.NAME if files else None
        if path is None or not path.is_file() or not self.folder.is_inside(path):
            return []
        stat = path.stat()
        return read_index(path, stat.st_mtime_ns, stat.st_size)

    def _make(self, run: str, missing: dict[int, Path]) -> dict[int, dict]:
        """The lines made so far; some are made now, the others by a thread."""
        with self.lock:
            made = self.made.setdefault(run, self._cached(run))
        keys = {step: file_key(path) for step, path in missing.items()}
        todo = [missing[step] for step, key in keys.items() if key not in made]
        for path, line in index.rebuild(todo[-FIRST_LINES:], load_for_index):
            made[file_key(path)] = line
        rest = todo[:-FIRST_LINES]
        running = self.threads.get(run)
        if rest and not (running and running.is_alive()):
            work = threading.Thread(target=self._work, args=(run, rest[::-1]), daemon=True)
            self.threads[run] = work
            work.start()
        elif todo and not rest:
            self._keep(run)
        lines = {step: made[key] for step, key in keys.items() if key in made}
        for step, line in lines.items():
            if line:
                lines[step] = {**line, "step": step}  # a file may not know its own number
        return lines

    def _work(self, run: str, paths: list[Path]) -> None:
        made = self.made[run]
        for path, line in index.rebuild(paths, load_for_index):
            made[file_key(path)] = line
        self._keep(run)

    def _cache_file(self, run: str) -> Path:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(f"{self.folder.boundary}\0{run}".encode()).hexdigest()[:24]
        return home / "spo-inspector" / f"{index.VERSION}-{name}.jsonl"

    def _cached(self, run: str) -> dict[tuple, dict | None]:
        path = self._cache_file(run)
        if not path.is_file():
            return {}
        made = {}
        for text in path.read_bytes().splitlines():
            try:
                name, size, time, line = json.loads(text)
            except ValueError:
                continue  # cut short
            if line is None or index.is_line(line):
                made[name, size, time] = line
        return made

    def _keep(self, run: str) -> None:
        """Write the cache; a machine without a writable home reads anew next time."""
        path = self._cache_file(run)
        lines = [json.dumps([*key, line]) for key, line in list(self.made[run].items())]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError:
            return


@lru_cache(maxsize=8)
def read_index(path: Path, mtime_ns: int, size: int) -> list[dict]:
    return index.read(path)


def file_key(path: Path) -> tuple[str, int, int]:
    """What changes when a file does; zeros for one that is gone."""
    try:
        stat = path.stat()
    except OSError:
        return path.name, 0, 0
    return path.name, stat.st_size, stat.st_mtime_ns


def load_for_index(path: Path):
    """Rollouts and credit of a file from anywhere."""
    step = read_step(path)
    return step.rollouts, step.credit
