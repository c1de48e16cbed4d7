"""benchmarks/results/tuned.json and critic_*.json -> tables of what a critic is worth."""

import results_tables
from results_tables import _accuracy, _difference, _result, _shown, _source

WORDS = {
    "reference": "**SPO, critic reads a solution**",
    "exact_values": "the same, exact values instead",
    "values_0": "the same, values 0 instead",
    "reinforce_nll": "REINFORCE with the likelihood term",
    "reinforce": "REINFORCE",
    "rloo": "RLOO",
    "grpo": "GRPO mode",
    "trl_grpo": "TRL's GRPOTrainer",
}
"""Rows of the main table; all other modes are in the long one."""
README_ROWS = ("reference", "values_0", "reinforce", "grpo", "trl_grpo")
README_TASKS = ("chain_sum_habit", "chain_sum_habit_hard", "leg_counting", "word_sorting_right")
BEST_OF = {
    "reinforce": ("reinforce", "reinforce_first"),
    "grpo": ("grpo", "grpo_first", "grpo_slow_first"),
    "trl_grpo": ("trl_grpo", "trl_grpo_first", "trl_grpo_slow_first"),
}
"""Of several settings of a rival the one that ends highest stands in the row, one with fewer than
three seeds only if all have fewer."""
SEEN = ("8", "16", "24", "32", "64", "256", "512")
ENOUGH_SEEDS = 3
ROUND_NUMBER = "960"
"""Samples after which accuracies stand in the tables: all runs went that far."""


def _by_task() -> dict[str, dict[str, dict]]:
    tasks = _result("tuned")["tasks"]
    return {name: {row["mode"]: row for row in rows} for name, rows in tasks.items()}


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _comparison(modes, cell, only=None) -> list[str]:
    """A row per mode, a column per task on which the reference has seeds enough, `only` some of
    them; the others are in the long table."""
    everything = _by_task()
    tasks = {
        name: rows
        for name, rows in everything.items()
        if len(rows.get("reference", {"seeds": ()})["seeds"]) >= ENOUGH_SEEDS
        and name in (only or everything)
    }
    lines = [f"| | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for mode in modes:
        found = [
            [rows[m] for m in BEST_OF.get(mode, (mode,)) if m in rows] for rows in tasks.values()
        ]
        cells = [cell(max(each, key=_rank)) if each else "" for each in found]
        if any(cells):
            lines.append(f"| {WORDS[mode]} | {' | '.join(cells)} |")
    return lines


def _rank(row: dict) -> tuple[int, float]:
    return min(len(row["seeds"]), ENOUGH_SEEDS), row["final_accuracy"]


def _end(row: dict) -> float:
    return row["final_accuracy"]


def results() -> str:
    """The README's table: a few rows of `main_comparison`."""

    def cell(row: dict) -> str:
        of_others = row["samples_ratio"] if row["against_grpo"] else None  # GRPO mode's is 1
        ratio = _shown(" ({:.2f} ×)", of_others)
        return f"{row['accuracy_at'].get(ROUND_NUMBER, row['final_accuracy']):.2f}{ratio}"

    return "\n".join(_comparison(README_ROWS, cell, README_TASKS))


def main_comparison() -> str:
    """Accuracy after equal samples; in brackets samples to GRPO mode's end, over its own."""

    def cell(row: dict) -> str:
        error = _shown(" ± {:.3f}", row["standard_error_at"].get(ROUND_NUMBER))
        accuracy = row["accuracy_at"].get(ROUND_NUMBER, row["final_accuracy"])
        ratio = _shown("{:.2f} ×", row["samples_ratio"]) or "–"
        return f"{accuracy:.3f}{error} ({ratio}, {_seeds(len(row['seeds']))})"

    return "\n".join([*_comparison(WORDS, cell), "", _source(_result("tuned"))])


def by_the_critic() -> str:
    """What the values add, and what is left to add, in sentences."""
    tasks = _by_task()
    parts = {
        "values_0": "The critic's own part, the difference to values of 0 with all else the same",
        "reinforce_first": "More than REINFORCE as the first study ran it",
        "exact_values": "Exact values are ahead of the reference by",
    }
    lines = []
    for other, words in parts.items():
        sign = -1 if other == "exact_values" else 1
        found = [
            f"{_difference(test | {'mean': sign * test['mean']})} on {task} "
            f"({_seeds(test['seeds'])})"
            for task, rows in tasks.items()
            if (test := rows.get("reference", {"against": {}})["against"].get(other))
        ]
        if found:
            lines.append(f"{words}, in mean accuracy: {', '.join(found)}.")
    return "\n".join(lines)


def tuned() -> str:
    """Every mode, per task."""
    lines = []
    for task, rows in _by_task().items():
        lines += [
            f"| {task} | seeds | samples | accuracy at the end | Δ to GRPO mode | Δ to "
            "`values_0` | samples to GRPO mode's end | at equal CPU seconds, less TRL | EV | "
            "entropy | gradient norm |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_tuned_row(row) for row in sorted(rows.values(), key=_mean_accuracy)]
        lines.append("")
    return "\n".join([*lines, _source(_result("tuned"))])


def _mean_accuracy(row: dict) -> float:
    """Less GRPO mode's, highest first."""
    against = row["against_grpo"]
    return -against["mean"] if against else 0.0


def _tuned_row(row: dict) -> str:
    trl = row["against_trl"]
    cells = (
        f"`{row['mode']}`",
        str(len(row["seeds"])),
        str(row["samples"]),
        f"{row['final_accuracy']:.3f}" + _shown(" ± {:.3f}", row["final_standard_error"]),
        _compared(row["against_grpo"]),
        _compared(row["against"].get("values_0")),
        _shown("{:.2f} ×", row["samples_ratio"]) or "not reached",
        f"{_difference(trl)} ({trl['seeds']})" if trl else "–",
        _shown("{:.2f}", row["explained_variance"]) or "–",
        f"{row['entropy']:.3f}",
        f"{row['gradient_norm']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _compared(test: dict | None) -> str:
    return f"{_difference(test)} ({test['seeds']})" if test else "–"


def sweep() -> str:
    """Each mode over learning rates and clips."""
    rows = _result("tuned")["sweep"]
    cells = sorted({(row["max_grad_norm"], row["learning_rate"]) for row in rows})
    heads = [f"clip {clip:g}, lr {rate:g}" for clip, rate in cells]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(cells)}"]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        of_mode = {(r["max_grad_norm"], r["learning_rate"]): r for r in rows if r["mode"] == mode}
        shown = [_sweep_cell(of_mode[cell]) if cell in of_mode else "" for cell in cells]
        samples = next(iter(of_mode.values()))["samples"]
        lines.append(f"| `{mode}`, {samples} samples | {' | '.join(shown)} |")
    return "\n".join([*lines, "", _source(_result("tuned"))])


def _sweep_cell(row: dict) -> str:
    accuracy = f"{row['mean_accuracy']:.3f}"
    bold = f"**{accuracy}**" if row["best"] else accuracy
    return f"{bold} ({row['clipped']:.0%})"


def goal_summary() -> str:
    """Each goal, how many tasks were asked for, and on which it was reached."""
    lines = ["| goal | tasks asked for | reached on | missed on |", "|---|---|---|---|"]
    for row in _result("tuned")["summary"]:
        places = [
            f"{len(row[key])}: {', '.join(row[key])}".removesuffix(": ")
            for key in ("reached", "missed")
        ]
        lines.append(f"| {row['goal']} | {row['asked']} | {' | '.join(places)} |")
    return "\n".join([*lines, "", _source(_result("tuned"))])


def goals() -> str:
    """What the critic was to reach on each task, misses included; single seeds left out."""
    lines = ["| goal | task | mode | found | seeds | reached |", "|---|---|---|---|---|---|"]
    for row in _result("tuned")["goals"]:
        if row["reached"] is None:
            continue
        value = _shown("{:.3f}", row["value"]) or "never"
        value += _shown(" ± {:.3f}", row.get("standard_error"))
        seeds = "–" if row["seeds"] is None else row["seeds"]
        reached = "yes" if row["reached"] else "no"
        lines.append(
            f"| {row['goal']} | {row['task']} | `{row['mode']}` | {value} | {seeds} | {reached} |"
        )
    return "\n".join([*lines, "", _source(_result("tuned"))])


FIRST = {
    ("spo_nll",): "SPO, critic network and features of the path",
    ("path_nll",): "SPO, critic of features alone",
    ("spo_p20",): "SPO without the likelihood term",
    ("ppo",): "PPO mode (p = 1)",
    ("reinforce",): "REINFORCE, no baseline",
    ("grpo", "grpo_slow"): "GRPO mode",
    ("trl_grpo", "trl_grpo_slow"): "TRL's GRPOTrainer",
}
"""Rows of the first study's table; of several modes the one that ends highest."""


def first_comparison() -> str:
    """Where each trainer ends, and on how many of GRPO mode's samples it comes to GRPO's end."""
    result = _result("learning")
    tasks = result["tasks"]
    lines = [f"| | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for modes, words in FIRST.items():
        found = [[row for row in rows if row["mode"] in modes] for rows in tasks.values()]
        cells = [_first_cell(max(each, key=_end)) if each else "" for each in found]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _source(result)])


def _first_cell(row: dict) -> str:
    ratio = _shown("{:.2f} ×", row["samples_ratio"]) or "–"
    return f"{_accuracy(row)} ({ratio}, {_seeds(len(row['seeds']))})"


def critics() -> str:
    """What each critic explains after so many completions, and its advantages beside exact ones."""
    lines = []
    for path in sorted(results_tables.RESULTS.glob("critic_*.json")):
        found = _result(path.stem)
        critics = found["critics"]
        lams = [str(lam) for lam in found["lams"] if lam not in (0.25, 0.65)]
        seen = [n for n in next(iter(critics.values()))["explained_variance"] if n in SEEN]
        exact = any(one["credit"] for one in critics.values())
        heads = [f"EV after {n}" for n in seen] + [f"corr. λ {lam}" for lam in lams] * exact
        title = f"{found['task']}, {found['held_out_completions']} held out"
        lines += [f"| {title} | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
        for name, one in critics.items():
            cells = [f"{one['explained_variance'][n]['mean']:.2f}" for n in seen]
            by_lam = one["credit"].get("64", {}).get("by_lam", {})
            cells += [_shown("{:.2f}", by_lam.get(lam)) for lam in lams] * exact
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        if exact:
            lines += _ends_of_the_scale(found, len(seen), lams)
        lines += ["", _source(found), ""]
    return "\n".join(lines[:-1])


def _ends_of_the_scale(found: dict, columns: int, lams: list[str]) -> list[str]:
    """Values 0, and exact ones."""
    lines = []
    for name, words in (("none", "values 0"), ("exact", "exact values")):
        one = found["groups_of_1"][name]
        cells = [""] * (columns - 1) + [_shown("{:.2f}", one.get("explained_variance"))]
        cells += [f"{one['credit']['by_lam'][lam]:.2f}" for lam in lams]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return lines


def source_costs() -> str:
    """What it costs to read a reference, in sentences."""
    found = _result("sources")
    short, long = found["short"], found["long"]
    share, whole = (
        long[name]["median"] / found["step_seconds"]
        for name in ("alignment_seconds", "source_seconds")
    )
    hints = "; ".join(
        f"{hint['passes']:.1f} × the seconds and {hint['positions_ratio']:.1f} × the positions "
        f"with {hint['num_generations']} of a prompt on {hint['model']}"
        for hint in found["hint"]
    )
    loaded = " on a machine with other work" if found["loaded_machine"] else ""
    return (
        f"CPU seconds of one thread{loaded}: to align {short['completions']} completions of "
        f"{short['tokens'] // short['completions']} tokens takes "
        f"{short['alignment_ms_per_100_tokens']:.1f} ms each, numbers and words. Of "
        f"{long['completions']} × {long['tokens'] // long['completions']} tokens it takes "
        f"{long['alignment_seconds']['median']:.1f} s, {share:.2%} of the step that "
        "[scaling.py](#is-a-steps-cost-linear) measured on a model of one layer, and "
        f"{long['source_seconds']['median']:.1f} s ({whole:.1%}) with the regression's values and "
        f"fit. `hint` is one pass a batch; with solutions as long as the completions it takes, "
        f"over a plain scoring pass, {hints}. {_source(found)}"
    )


BLOCKS = (
    source_costs,
    results,
    main_comparison,
    by_the_critic,
    tuned,
    sweep,
    goal_summary,
    goals,
    critics,
    first_comparison,
)
