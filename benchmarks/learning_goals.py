"""What the critic of benchmarks/learning.py was to reach, and what it did."""

from typing import Any

ENOUGH_SEEDS = 3
ABLATION = "values_0"
REINFORCES = ("reinforce", "reinforce_nll", "reinforce_first")
WITHOUT_COLUMN = ("peer_2", "peer_4", "peer_peers_2", "peer_peers_4", "peers_4", "memory",
                  "history", "peer_memory_2", "hint_peer")  # fmt: skip
WITH_COLUMN = ("reference", "reference_rest", "reference_prose", "hint", "answer_only")
COUNTED = ("reference", "reference_prose", "peer_peers_2")
"""In the summary: a solution in formulas, one in prose, and no solution but a right sibling."""
SOURCES = ("surprisal", "answer", "alignment_numbers_and_words", "alignment_and_rest", "hint",
           "answer_likelihood", "peers", "peer", "peer_and_peers")  # fmt: skip
"""Critics of benchmarks/critic.py whose credit was to be right."""
READING = ("alignment_numbers_and_words", "alignment_and_rest", "peer_and_peers")
"""Of them in the summary: those that read a solution or a right sibling."""
QUARTER_TASKS = ("chain_sum_habit", "leg_counting_habit", "chain_sum_habit_hard")
"""Where a quarter of GRPO mode's samples was to be enough."""
QUARTER = "at most 0.25 × GRPO mode's samples to its end"
THIRD = "at most 0.35 × GRPO mode's samples to its end"
ABOVE = "mean accuracy above {}"
TRL_SECONDS = "above TRL at equal CPU seconds"
NO_COLUMN = "no column: above GRPO mode"
CORRELATION = "advantages correlate at least 0.45 with exact ones"

Goal = dict[str, Any]


def goals(tasks: dict[str, list[dict]], diagnostics: list[dict]) -> list[Goal]:
    """A row per goal, task and mode, misses included. `diagnostics`: of benchmarks/critic.py."""
    found = []
    for task, rows in tasks.items():
        by_mode = {row["mode"]: row for row in rows}
        for mode in WITH_COLUMN:
            if mode in by_mode:
                found += _samples(task, by_mode[mode]) + _differences(task, by_mode[mode])
        for mode in (*WITHOUT_COLUMN, *(f"{m}_64" for m in WITHOUT_COLUMN)):
            if mode in by_mode and (test := by_mode[mode]["against_grpo"]):
                found.append(_goal(NO_COLUMN, task, mode, test))
                found += _samples(task, by_mode[mode])
    for result in diagnostics:
        title = f"{result['task']}, {result['held_out_completions']} held out"
        found += _correlations(title, result["critics"])
    return found


def _samples(task: str, row: dict) -> list[Goal]:
    ratio, count = row["samples_ratio"], len(row["seeds"])
    limits = {QUARTER: 0.25} if task in QUARTER_TASKS and row["mode"] in WITH_COLUMN else {}
    return [
        {
            "goal": words,
            "task": task,
            "mode": row["mode"],
            "seeds": count,
            "value": ratio,
            "reached": ratio is not None and ratio <= limit if count >= ENOUGH_SEEDS else None,
        }
        for words, limit in (limits | {THIRD: 0.35}).items()
    ]


def _differences(task: str, row: dict) -> list[Goal]:
    found = [
        _goal(ABOVE.format(other), task, row["mode"], test)
        for other in (ABLATION, *REINFORCES)
        if (test := row["against"].get(other))
    ]
    if row["against_trl"]:
        found.append(_goal(TRL_SECONDS, task, row["mode"], row["against_trl"], 0))
    return found


def _goal(words: str, task: str, mode: str, test: dict, errors: float = 2.0) -> Goal:
    """Reached if the mean difference is above 0 and so many standard errors; None: too few seeds
    to say."""
    error, count = test["standard_error"], test["seeds"]
    return {
        "goal": words,
        "task": task,
        "mode": mode,
        "seeds": count,
        "value": test["mean"],
        "standard_error": error,
        "reached": test["mean"] > errors * error if count >= ENOUGH_SEEDS else None,
    }


def _correlations(task: str, critics: dict[str, dict]) -> list[Goal]:
    """Of segments' advantages with the exact ones after 64 completions, at the best λ."""
    found = []
    for name in SOURCES:
        result = critics.get(name, {"credit": {}})
        if by_lam := result["credit"].get("64", {}).get("by_lam"):
            best = max(by_lam.values())
            found.append(
                {
                    "goal": CORRELATION,
                    "task": task,
                    "mode": name,
                    "seeds": None,
                    "value": round(best, 3),
                    "reached": best >= 0.45,
                }
            )
    return found


def summary(found: list[Goal]) -> list[dict[str, Any]]:
    """Of each goal how many tasks were asked for, and where it was reached and missed. A task in
    another wording of the reference, or with none, counts apart and carries the mode's name."""
    above_all = [ABOVE.format(mode) for mode in REINFORCES]
    asked = [
        (QUARTER, 3, [QUARTER], COUNTED),
        (THIRD, 6, [THIRD], COUNTED),
        ("above values of 0 by two standard errors", 4, [ABOVE.format(ABLATION)], COUNTED),
        ("above every REINFORCE by two standard errors", 4, above_all, COUNTED),
        (TRL_SECONDS, "all", [TRL_SECONDS], COUNTED),
        (f"{NO_COLUMN} by two standard errors", 3, [NO_COLUMN], WITHOUT_COLUMN),
        (f"{CORRELATION}, after 64 completions", "any", [CORRELATION], READING),
    ]
    return [
        {"goal": words, "asked": count, **_where(found, names, modes)}
        for words, count, names, modes in asked
    ]


def _where(found: list[Goal], names: list[str], modes: tuple[str, ...]) -> dict[str, list[str]]:
    """Tasks where all goals of these names that have enough seeds are reached, and the others."""
    verdicts: dict[str, list[bool]] = {}
    for goal in found:
        if goal["goal"] in names and goal["mode"] in modes and goal["reached"] is not None:
            title = goal["task"]
            title += "" if goal["mode"] == "reference" else f" ({goal['mode']})"
            verdicts.setdefault(title, []).append(goal["reached"])
    return {
        "reached": [title for title, each in verdicts.items() if all(each)],
        "missed": [title for title, each in verdicts.items() if not all(each)],
    }
