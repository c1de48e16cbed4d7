"""Runs of benchmarks/learning.py with each mode at its own best learning rate and gradient clip ->
tuned.json: the sweep, a table per task, and what the critic was to reach.

All comparisons are paired by seed: the runs of a seed saw the same problems in the same order. Runs
of different lengths are compared over the evaluations that both have.
"""

import itertools
import json
import math
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from learning_goals import ABLATION, ENOUGH_SEEDS, REINFORCES, goals, summary
from learning_modes import GRID, GRPO, LARGE, SWEPT, TRL, TUNED_AS
from learning_report import Runs, accuracy_at, first_reached, load_runs, paired_test, plot
from learning_tasks import TINY

CELL = re.compile(r"(?P<mode>\w+)-lr(?P<learning_rate>[\d.e-]+)-clip(?P<max_grad_norm>[\d.]+)$")
NOISE = 0.02
"""Of a mean accuracy in the sweep: the standard error of three evaluations on 400 problems."""
OLDER = {mode: f"{mode}_first" for mode in (*GRPO, *TRL, "reinforce", "ppo")}
"""Runs of the first study, at its learning rates and clip, and what they are called here."""
GRPOS = ("grpo", f"grpo{LARGE}", *(OLDER[mode] for mode in GRPO))
"""Of these the one that ends highest on a task is what the others are compared with."""
COMPARED = (ABLATION, *REINFORCES, "exact_values", "rloo")

# --- the sweep ------------------------------------------------------------------------------------


def cell_name(cell: dict[str, float]) -> str:
    """Goes into the file name of a run of the sweep.

    >>> cell_name({"learning_rate": 4e-4, "max_grad_norm": 0.1})
    '-lr0.0004-clip0.1'
    """
    return f"-lr{cell['learning_rate']:g}-clip{cell['max_grad_norm']:g}"


def load_sweep(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Runs by mode and cell."""
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*/*.json")):
        run = json.loads(path.read_text())
        if match := CELL.match(path.stem.removesuffix(f"-seed{run['seed']}")):
            found[run["mode"]][path.stem[len(match["mode"]) : match.end()]].append(run)
    return found


def sweep_table(folder: Path) -> list[dict[str, Any]]:
    """A row per mode and cell: mean accuracy and accuracy at the end of the samples that all cells
    of the mode went to, how often the clip had a hold, and accuracy at the end of the whole run."""
    rows = []
    for mode, by_cell in load_sweep(folder).items():
        samples = min(curve(run)[-1, 0] for runs in by_cell.values() for run in runs)
        for name, runs in by_cell.items():
            settings = runs[0]["settings"]
            early = [_within(curve(run), samples) for run in runs]
            norms = [norm for run in runs for norm in run["steps"]["grad_norm"]]
            rows.append(
                {
                    "mode": mode,
                    "cell": name,
                    **{key: settings[key] for key in GRID},
                    "runs": len(runs),
                    "samples": int(samples),
                    "mean_accuracy": _mean([c[1:, 2].mean() for c in early]),
                    "accuracy": _mean([c[-1, 2] for c in early]),
                    "final_accuracy": _mean([curve(run)[-1, 2] for run in runs]),
                    "final_samples": int(min(curve(run)[-1, 0] for run in runs)),
                    "clipped": _mean([n > settings["max_grad_norm"] for n in norms]),
                    "gradient_norm": _mean(norms),
                }
            )
    best = {mode: _best(rows, mode) for mode in {row["mode"] for row in rows}}
    return [row | {"best": row is best[row["mode"]]} for row in rows]


def _best(rows: list[dict], mode: str) -> dict:
    """The first study's cell, unless another one is better by more than the noise of a seed."""
    of_mode = [row for row in rows if row["mode"] == mode]
    best = max(of_mode, key=lambda row: row["mean_accuracy"])
    usual = [row for row in of_mode if all(row[key] == TINY[key] for key in GRID)]
    near = usual and usual[0]["mean_accuracy"] > best["mean_accuracy"] - NOISE
    return usual[0] if near else best


def best_cell(folder: Path, mode: str) -> dict[str, float]:
    """Learning rate and clip of the mode, or of the one it is tuned as; none if nobody tried."""
    rows = sweep_table(folder)
    small = mode.removesuffix(LARGE)
    name = TUNED_AS.get(small, small if small in SWEPT else "reference")
    if any(row["mode"] == name + LARGE for row in rows) and mode.endswith(LARGE):
        name += LARGE
    rows = [row for row in rows if row["mode"] == name]
    return {key: _best(rows, name)[key] for key in GRID} if rows else {}


# --- curves ---------------------------------------------------------------------------------------


def curve(run: dict[str, Any]) -> np.ndarray:
    """Columns samples, CPU seconds, accuracy; a row per evaluation. Continuations are samples."""
    per_update = np.full(run["evaluations"][-1]["update"], float(run["samples_per_update"]))
    if "monte_carlo" in (run["settings"].get("value_sources") or []):
        segments = np.array(run["steps"]["spo/mean_segments_per_sequence"])
        per_update *= 1 + run["settings"]["value_continuations"] * segments
    samples = np.concatenate([[0.0], np.cumsum(per_update)])
    return np.array(
        [(samples[e["update"]], e["cpu_seconds"], e["accuracy"]) for e in run["evaluations"]]
    )


def _within(of_run: np.ndarray, samples: float) -> np.ndarray:
    return of_run[of_run[:, 0] <= samples]


def _mean(values) -> float:
    return round(statistics.fmean(map(float, values)), 4)


def mean_curve(runs: dict[int, dict], seeds: list[int]) -> np.ndarray:
    """Over the evaluations that all have."""
    curves = [curve(runs[seed]) for seed in seeds]
    return np.mean([c[: min(map(len, curves))] for c in curves], axis=0)


def difference(ours: dict[int, dict], theirs: dict[int, dict]) -> dict[str, Any] | None:
    """Accuracy less theirs, averaged over their evaluations up to where the shorter run ends, ours
    linear between its own; over common seeds."""
    differences, samples = [], []
    for seed in sorted(set(ours) & set(theirs)):
        a, b = curve(ours[seed]), curve(theirs[seed])
        until = min(a[-1, 0], b[-1, 0])
        b = _within(b, until)[1:]
        if len(b):
            differences.append(float(np.mean(np.interp(b[:, 0], a[:, 0], a[:, 2]) - b[:, 2])))
            samples.append(until)
    if not differences:
        return None
    return {"seeds": len(differences), "samples": int(min(samples))} | paired_test(differences)


# --- tables ---------------------------------------------------------------------------------------


def load_study(folder: Path) -> dict[str, Runs]:
    """The tuned runs by task, and runs of the first study that began with the same model: accuracy
    before training is the same to the last digit."""
    tasks = load_runs(folder / "tuned")
    first = load_runs(folder / "first")
    for task, runs in tasks.items():
        begun = {s: _start(run) for of_mode in runs.values() for s, run in of_mode.items()}
        for mode, name in OLDER.items():
            older = first.get(task, {}).get(mode, {})
            same = {s: run for s, run in older.items() if begun.get(s) == _start(run)}
            if same:
                runs[name] = same
    return tasks


def _start(run: dict) -> float:
    return run["evaluations"][0]["accuracy"]


def best_of(runs: Runs, modes: tuple[str, ...]) -> str | None:
    """The mode that ends highest, of those that ran; one with few seeds only if all have few."""

    def rank(mode: str) -> tuple[int, float]:
        seeds = sorted(runs[mode])
        return min(len(seeds), ENOUGH_SEEDS), mean_curve(runs[mode], seeds)[-1, 2]

    return max((mode for mode in modes if runs.get(mode)), key=rank, default=None)


def summarise(runs: Runs) -> list[dict[str, Any]]:
    """A row per mode; none where no GRPO mode ran."""
    baseline = best_of(runs, GRPOS)
    if baseline is None:
        return []
    found = [_row(runs, mode, baseline) for mode in runs]
    return [row for row in found if row["seeds"]]


def _row(runs: Runs, mode: str, baseline: str) -> dict[str, Any]:
    of_mode = runs[mode]
    seeds = sorted(set(of_mode) & set(runs[baseline]))
    if not seeds:
        return {"seeds": seeds}
    ours, base = mean_curve(of_mode, seeds), mean_curve(runs[baseline], seeds)
    curves = {seed: curve(run) for seed, run in of_mode.items()}
    target = float(base[-1, 2])
    learned = target > base[0, 2]  # a mode that only forgot is no mark to reach
    reached = [first_reached(c, target, 0) if learned else None for c in (ours, base)]
    errors = [_error([curves[seed][i, 2] for seed in seeds]) for i in range(len(ours))]
    explained = [
        statistics.fmean(values)
        for run in of_mode.values()
        if (values := [v for v in _series(run, "spo/explained_variance") if v is not None])
    ]
    return {
        "mode": mode,
        "seeds": seeds,
        "settings": {key: next(iter(of_mode.values()))["settings"][key] for key in GRID},
        "samples": int(ours[-1, 0]),
        "accuracy_at": {str(int(s)): round(float(a), 4) for s, _, a in ours},
        "standard_error_at": {str(int(s)): e for s, e in zip(ours[:, 0], errors, strict=True)},
        "final_accuracy": round(float(ours[-1, 2]), 4),
        "final_standard_error": errors[-1],
        "baseline": baseline,
        "target": round(target, 4),
        "samples_ratio": None if None in reached else round(reached[0] / reached[1], 3),
        "against_grpo": None if mode == baseline else difference(of_mode, runs[baseline]),
        "against": {
            other: difference(of_mode, runs[other])
            for other in COMPARED
            if other in runs and other != mode
        },
        "against_trl": None
        if mode in ("trl_grpo", *OLDER.values())
        else _at_equal_seconds(of_mode, runs.get("trl_grpo", {})),
        "cpu_seconds_a_sample": _mean([c[-1, 1] / c[-1, 0] for c in curves.values()]),
        "explained_variance": _mean(explained) if explained else None,
        "entropy": _last_mean(of_mode, "entropy"),
        "gradient_norm": _last_mean(of_mode, "grad_norm"),
        "lam": _last_mean(of_mode, "spo/lam"),
        "value_coefficient": _last_mean(of_mode, "spo/value_coefficient"),
    }


def _series(run: dict, name: str) -> list[float | None]:
    return run["steps"].get(name, [])


def _last_mean(runs: dict[int, dict], name: str) -> float | None:
    """Of the second half of the steps."""
    halves = [values[len(values) // 2 :] for r in runs.values() if (values := _series(r, name))]
    return _mean(itertools.chain(*halves)) if halves else None


def _error(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    return round(statistics.stdev(values) / math.sqrt(len(values)), 4)


def _at_equal_seconds(ours: dict, trl: dict) -> dict[str, Any] | None:
    """Accuracy less TRL's when the first of the two has used up its CPU seconds. The older study's
    seconds are those of another time on the machine: they do not count."""
    seeds = sorted(set(ours) & set(trl))
    if not seeds:
        return None
    differences = []
    for seed in seeds:
        a, b = curve(ours[seed]), curve(trl[seed])
        until = min(a[-1, 1], b[-1, 1])
        differences.append(accuracy_at(a, until) - accuracy_at(b, until))
    return {"seeds": len(seeds)} | paired_test(differences)


# --- all of it ------------------------------------------------------------------------------------

PLOTTED = ("reference", "exact_values", "values_0", "peer_peers_2", "reinforce_first",
           "grpo_slow_first", "grpo", "trl_grpo_slow_first")  # fmt: skip


def of_one_length(runs: Runs) -> Runs:
    """Of each plotted mode the runs that went furthest."""
    found = {}
    for mode in PLOTTED:
        lengths = {seed: len(run["evaluations"]) for seed, run in runs.get(mode, {}).items()}
        longest = [seed for seed, length in lengths.items() if length == max(lengths.values())]
        if longest:
            found[mode] = {seed: runs[mode][seed] for seed in longest}
    return found


def report(folder: Path, out: Path) -> None:
    """Write sweep, tables, goals and plot of everything that has been run."""
    study = load_study(folder)
    tasks = {task: summarise(runs) for task, runs in study.items()}
    sweep = sweep_table(folder / "sweep")
    if not (tasks or sweep):
        return
    diagnostics = [json.loads(path.read_text()) for path in sorted(out.glob("critic_*.json"))]
    found = goals(tasks, diagnostics)
    result = {"sweep": sweep, "tasks": tasks, "summary": summary(found), "goals": found}
    if study:
        plot({t: of_one_length(runs) for t, runs in study.items()}, PLOTTED, out / "tuned.png")
    print(write_result("tuned", result, out))
