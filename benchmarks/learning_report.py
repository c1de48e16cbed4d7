"""Runs of benchmarks/learning.py -> learning.json (the table) and learning.png (the curves).

`python benchmarks/learning.py --report` calls `report`. All comparisons are paired by seed: the
runs of a seed saw the same problems in the same order.
"""

import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from learning_modes import GRPO, TRL

ABLATED = "spo_p20"
"""Ablations change one thing of this mode."""
EARLY = 0.75
"""Of GRPO mode's gain: where it still learns fast, at whichever of its learning rates is faster."""
Runs = dict[str, dict[int, dict[str, Any]]]
"""By mode and seed."""


def load_runs(folder: Path) -> dict[str, Runs]:
    """By task; runs tried with other settings carry a label and are left out."""
    found: dict[str, Runs] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*/*.json")):
        run = json.loads(path.read_text())
        if path.stem == f"{run['mode']}-seed{run['seed']}":
            found[run["task"]][run["mode"]][run["seed"]] = run
    return found


def curve(run: dict[str, Any]) -> np.ndarray:
    """Columns samples, CPU seconds, accuracy; a row per evaluation."""
    size = run["samples_per_update"]
    return np.array(
        [(e["update"] * size, e["cpu_seconds"], e["accuracy"]) for e in run["evaluations"]]
    )


def first_reached(curve: np.ndarray, accuracy: float, column: int) -> float | None:
    """Samples (column 0) or seconds (1) at which the curve first comes to an accuracy, linear
    between evaluations; None if it never does.

    >>> first_reached(np.array([[0, 0, 0.2], [10, 5, 0.4], [20, 9, 0.3]]), 0.3, 0)
    5.0
    """
    for before, after in itertools.pairwise(curve):
        if before[2] < accuracy <= after[2]:
            share = (accuracy - before[2]) / (after[2] - before[2])
            return float(before[column] + share * (after[column] - before[column]))
    return None


def accuracy_at(curve: np.ndarray, seconds: float) -> float:
    """After so many CPU seconds, linear between evaluations; the last one for ever after."""
    return float(np.interp(seconds, curve[:, 1], curve[:, 2]))


def mean_curve(runs: dict[int, dict], seeds: list[int]) -> np.ndarray:
    return np.mean([curve(runs[seed]) for seed in seeds], axis=0)


def curve_of_all(runs: dict[int, dict] | None) -> np.ndarray | None:
    """The mean over every seed there is."""
    return mean_curve(runs, sorted(runs)) if runs else None


def paired_test(differences: list[float]) -> dict[str, float | None]:
    """Mean, standard error and two-sided p of Student's paired t-test.

    >>> paired_test([1.0, 2.0, 3.0])
    {'mean': 2.0, 'standard_error': 0.5774, 'p': 0.0742}
    """
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return {"mean": round(mean, 4), "standard_error": None, "p": None}
    error = statistics.stdev(differences) / math.sqrt(count)
    p = 1.0 if mean == 0 else 0.0
    if error > 0:
        # ∫ of t's density from 0 to |t|, as the angle whose tangent is t / √(n − 1)
        degrees = count - 1
        angles = np.linspace(0.0, math.atan(abs(mean / error) / math.sqrt(degrees)), 10_001)
        whole = np.linspace(0.0, math.pi / 2, 10_001)
        inside, all_of_it = (
            float(np.trapezoid(np.cos(a) ** (degrees - 1), a)) for a in (angles, whole)
        )
        p = 1.0 - inside / all_of_it
    return {"mean": round(mean, 4), "standard_error": round(error, 4), "p": round(p, 4)}


def difference(ours: dict[int, dict], theirs: dict[int, dict]) -> dict[str, Any] | None:
    """Accuracy averaged over training, less theirs, over the seeds of both; None without any."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    means = [[curve(runs[seed])[1:, 2].mean() for seed in seeds] for runs in (ours, theirs)]
    differences = [float(a - b) for a, b in zip(*means, strict=True)]
    return {"seeds": len(seeds)} | paired_test(differences)


def better_of(runs: Runs, modes: Iterable[str]) -> str:
    """The mode that ends higher, of those that ran."""
    there = [mode for mode in modes if runs.get(mode)]
    return max(there, key=lambda m: curve_of_all(runs[m])[-1, 2], default=next(iter(modes)))


def summarise(runs: Runs) -> list[dict[str, Any]]:
    """A row per mode: final accuracy, samples and seconds to GRPO mode's final accuracy, samples to
    three quarters of its gain, the paired differences of the accuracy averaged over training, and
    the accuracy when TRL's time is up."""
    rows = []
    trl = curve_of_all(runs.get(better_of(runs, TRL)))
    base_mode = better_of(runs, GRPO)
    for mode, of_mode in runs.items():
        seeds = sorted(set(of_mode) & set(runs.get(base_mode, {})))
        if not seeds:
            continue
        ours, base = mean_curve(of_mode, seeds), mean_curve(runs[base_mode], seeds)
        target = float(base[-1, 2])
        finals = [curve(of_mode[seed])[-1, 2] for seed in seeds]
        samples, base_samples = (first_reached(c, target, 0) for c in (ours, base))
        seconds, base_seconds = (first_reached(c, target, 1) for c in (ours, base))
        early = float(base[0, 2] + EARLY * (target - base[0, 2]))
        explained = [
            statistics.fmean(values[len(values) // 2 :])
            for seed in seeds
            if (values := [v for v in _explained(of_mode[seed]) if v is not None])
        ]
        rows.append(
            {
                "mode": mode,
                "seeds": seeds,
                "final_accuracy": round(statistics.fmean(finals), 4),
                "final_standard_error": _standard_error(finals),
                "baseline": base_mode,
                "against_grpo": difference(of_mode, runs[base_mode]),
                "against_spo": difference(of_mode, runs.get(ABLATED, {})),
                "target": round(target, 4),
                "samples_ratio": _ratio(samples, base_samples),
                "seconds_ratio": _ratio(seconds, base_seconds),
                "early_samples_ratio": _ratio(
                    first_reached(ours, early, 0), _first_of_grpo(runs, seeds, early)
                ),
                "at_trl_seconds": None if trl is None else round(accuracy_at(ours, trl[-1, 1]), 4),
                "cpu_seconds": round(float(ours[-1, 1]), 1),
                "explained_variance": round(statistics.fmean(explained), 3) if explained else None,
            }
        )
    return rows


def _first_of_grpo(runs: Runs, seeds: list[int], accuracy: float) -> float | None:
    """Samples to an accuracy of GRPO mode at its faster learning rate, on the same seeds."""
    found = []
    for mode in GRPO:
        shared = sorted(set(runs.get(mode, {})) & set(seeds))
        if shared:
            found.append(first_reached(mean_curve(runs[mode], shared), accuracy, 0))
    return min(filter(None, found), default=None)


def _explained(run: dict[str, Any]) -> list[float | None]:
    return run["steps"].get("spo/explained_variance", [])


def explained_curve(runs: dict[int, dict]) -> np.ndarray | None:
    """Columns samples, explained variance of the critic: means over every seed and each tenth of
    the run. None where no value was ever learned."""
    series = [np.array(_explained(run), float) for run in runs.values() if any(_explained(run))]
    if not series:
        return None
    parts = np.array_split(np.stack(series), min(10, len(series[0])), axis=1)
    ends = np.cumsum([part.shape[1] for part in parts])
    samples = next(iter(runs.values()))["samples_per_update"] * ends
    return np.column_stack([samples, [np.nanmean(part) for part in parts]])


def _standard_error(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    return round(statistics.stdev(values) / math.sqrt(len(values)), 4)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else round(ours / theirs, 3)


def plot(tasks: dict[str, Runs], modes: tuple[str, ...], path: Path) -> None:
    """Mean held-out accuracy with its standard error, against samples and CPU seconds, and the
    explained variance of the critic against samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(tasks), 3, figsize=(14, 3.4 * len(tasks)), squeeze=False)
    lines = {}
    for row, (task, runs) in zip(axes, tasks.items(), strict=True):
        for number, mode in enumerate(modes):
            if mode not in runs:
                continue
            colour = f"C{number}"
            curves = np.stack([curve(run) for run in runs[mode].values()])
            middle = curves.mean(0)
            error = curves[..., 2].std(0, ddof=min(1, len(curves) - 1)) / math.sqrt(len(curves))
            for column, axis in enumerate(row[:2]):
                x, y = middle[:, column], middle[:, 2]
                (lines[mode],) = axis.plot(x, y, color=colour)
                axis.fill_between(x, y - error, y + error, color=colour, alpha=0.12)
            explained = explained_curve(runs[mode])
            if explained is not None:
                row[2].plot(*explained.T, color=colour)
        row[1].sharey(row[0])
        row[0].set(xlabel="sampled completions", ylabel=f"{task}: held-out accuracy")
        row[1].set(xlabel="CPU seconds of training")
        row[2].set(xlabel="sampled completions", ylabel="explained variance", ylim=(-0.2, 0.6))
    figure.legend(lines.values(), lines, loc="upper center", ncols=6)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.6 / figure.get_figheight()))
    figure.savefig(path, dpi=110)


def report(folder: Path, modes: tuple[str, ...], out: Path) -> None:
    """Write the table and the plot of everything that has been run."""
    tasks = load_runs(folder)
    if not tasks:
        return  # all of it was tried with other settings
    plot(tasks, modes, out / "learning.png")
    table = {task: summarise(runs) for task, runs in tasks.items()}
    print(write_result("learning", {"tasks": table}, out))
