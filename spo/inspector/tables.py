"""Rows for the tables around the reader: prompts of a step, a critic's misses, odd completions,
phrases. Pure; the first columns of a row say which completion it is."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from spo.inspector.history import History, numbers
from spo.inspector.markup import one_line, token_texts
from spo.inspector.step import Step
from spo.inspector.turns import last_words
from spo.inspector.views import group_rows, group_starts, row_statistics
from spo.segments import segment_starts

PROMPT_COLUMNS = ("prompt", "asks", "reward", "spread", "tokens", "cut off", "segments", "max |A|")
MISS_COLUMNS = ("step", "prompt", "completion", "V(prompt)", "reward", "miss")
ODD_COLUMNS = ("prompt", "completion", "why", "reward", "tokens", "text", "reference")
PHRASE_COLUMNS = ("phrase", "count", "mean A", "mean reward")
SEARCH_COLUMNS = ("step", "prompt", "completion", "token", "A", "reward", "text")

MOST_ROWS = 30
PHRASE_TOKENS = 4000
"""Of each step: more would take seconds and change little."""
MIN_PHRASE_COUNT = 8
LONGEST_PHRASE = 3
WORDS = re.compile(r"\w+|[^\w\s]+")


def nice(x: float | None) -> float | None:
    """Three digits; None for NaN, which a table shows as an empty cell."""
    return None if x is None or not np.isfinite(x) else float(f"{x:.3g}")


def prompt_rows(step: Step, first: int = 0) -> list[list[Any]]:
    """One row a prompt: PROMPT_COLUMNS."""
    statistics = row_statistics(step)
    rows = []
    for group, start in enumerate(group_starts(step).tolist()):
        block = group_rows(step, group)
        rewards = statistics["reward"][block]
        known = rewards[np.isfinite(rewards)]
        rows.append(
            [
                first + group + 1,
                last_words(step.rollouts.prompts[start], 70),
                nice(known.mean()) if known.size else None,
                nice(np.ptp(known)) if known.size else None,
                nice(statistics["length"][block].mean()),
                int(step.rollouts.truncated[block].sum()),
                nice(statistics["segments"][block].mean()),
                nice(statistics["advantage"][block].max(initial=0.0)),
            ]
        )
    return rows


def worst_misses(history: History) -> list[list[Any]]:
    """The completions of the run's last third whose reward V(prompt) missed most: MISS_COLUMNS.

    A critic that has just begun misses everything.
    """
    rows = []
    for line in history.lines[-(-2 * len(history.lines) // 3) :] or history.lines:
        values, rewards = numbers(line.get("value")), numbers(line["reward"])
        if values.shape != rewards.shape:
            continue
        misses = np.abs(np.nan_to_num(values - rewards))
        size = line["num_generations"]
        for at in np.argsort(-misses)[:MOST_ROWS]:
            place = [line["step"], int(at) // size + 1, int(at) % size + 1]
            rows.append([*place, nice(values[at]), nice(rewards[at]), nice(misses[at])])
    return sorted(rows, key=lambda row: -(row[5] or 0.0))[:MOST_ROWS]


def odd_completions(step: Step) -> list[list[Any]]:
    """The best rewarded completions that are short, long or repeat themselves: ODD_COLUMNS."""
    statistics = row_statistics(step)
    rewards = np.nan_to_num(statistics["reward"], nan=-np.inf)
    if not rewards.size:
        return []
    best = np.flatnonzero(rewards >= np.quantile(rewards, 0.75))
    lengths = statistics["length"]
    repeats = {int(row): repeated_share(step.rollouts.completions[row]) for row in best}
    order = {
        "shortest": sorted(best, key=lambda row: lengths[row])[:5],
        "longest": sorted(best, key=lambda row: -lengths[row])[:5],
        "repeats itself": sorted(best, key=lambda row: -repeats[int(row)])[:5],
    }
    starts = group_starts(step)
    rows = []
    for why, chosen in order.items():
        for row in chosen:
            words = why
            if why == "repeats itself":
                if repeats[int(row)] < 0.2:
                    continue
                words = f"{repeats[int(row)]:.0%} repeated"
            group = int(np.searchsorted(starts, row, side="right")) - 1
            text = one_line(step.rollouts.completions[row], 120)
            reward = nice(statistics["reward"][row])
            place = [group + 1, int(row) - int(starts[group]) + 1]
            reference = one_line(" · ".join(kept[row] for kept in step.beside.values()))
            rows.append([*place, words, reward, int(lengths[row]), text, reference])
    return rows


def repeated_share(text: str, size: int = 4) -> float:
    """The share of a text's n-grams of words that occurred in it before.

    >>> repeated_share("a b c d e a b c d")
    0.16666666666666663
    """
    words = WORDS.findall(text)
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def phrases(steps: Iterable[Step]) -> tuple[list[list[Any]], list[list[Any]]]:
    """The phrases most credited and most blamed: n-grams of words within segments, by the mean
    advantage of the segments they occur in."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for step in steps:
        starts = segment_starts(step.credit.segment_ids)
        lengths = step.rollouts.lengths
        enough = max(1, int(lengths.sum() // PHRASE_TOKENS))  # every n-th completion will do
        for row in range(0, len(step.rollouts), enough):
            length = int(lengths[row])
            texts = token_texts(step, row)
            cuts = [*np.flatnonzero(starts[row, :length]).tolist(), length]
            reward = float(step.rollouts.completion_rewards[row])
            for begin, end in pairwise(cuts):
                advantage = float(step.credit.token_advantages[row, begin])
                for phrase in grams("".join(texts[begin:end])):
                    seen.setdefault(phrase, []).append((advantage, reward))
    rows = []
    for phrase, found in seen.items():
        if len(found) < MIN_PHRASE_COUNT:
            continue
        numbers_ = np.array(found)
        error = numbers_[:, 0].std() / np.sqrt(len(found))
        mean = numbers_[:, 0].mean()
        sure = np.sign(mean) * max(0.0, abs(mean) - 2 * error)  # a rare phrase must be clearer
        known = numbers_[np.isfinite(numbers_[:, 1]), 1]
        reward = nice(known.mean()) if known.size else None
        rows.append((sure, [phrase, len(found), nice(mean), reward]))
    rows.sort(key=lambda pair: pair[0])
    blamed = [row for sure, row in rows[:15] if sure < 0]
    credited = [row for sure, row in rows[::-1][:15] if sure > 0]
    return credited, blamed


def grams(text: str) -> set[str]:
    """The n-grams of words of a text, as they stand in it; single signs alone say nothing.

    >>> sorted(grams("so x = 1"))
    ['= 1', 'so', 'so x', 'so x =', 'x =', 'x = 1']
    """
    found = list(WORDS.finditer(text))
    spans = set()
    for size in range(1, LONGEST_PHRASE + 1):
        for i in range(len(found) - size + 1):
            phrase = text[found[i].start() : found[i + size - 1].end()]
            if 1 < len(phrase) < 60 and "\n" not in phrase and any(map(str.isalnum, phrase)):
                spans.add(phrase)
    return spans


def search_rows(matches: list[dict[str, Any]]) -> list[list[Any]]:
    """SEARCH_COLUMNS of what a search found."""
    return [
        [
            match["step"],
            match["group"] + 1,
            match["completion"] + 1,
            match["token"] + 1,
            nice(match["advantage"]),
            nice(match.get("reward")),
            one_line(match["text"], 120),
        ]
        for match in matches
    ]
