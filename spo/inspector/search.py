"""A query -> the segments of a whole run that match it, the largest |A| first, counted by step.

Only the columns that a query needs are read, and stay ragged: N tokens of all completions one
after the other. A search goes step by step, so that the first matches show at once.
"""

import re
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spo.inspector.bounded import TooLarge
from spo.inspector.reading import count_groups, read_columns
from spo.inspector.text import char_ends
from spo.inspector.views import bound, matches, number

BUDGET = 0.4
"""Seconds until the first matches are shown."""
EVERY = 1.0
"""And until the next: each time a table and a chart are drawn anew."""
READERS = 2
"""Files read at once: what decodes Parquet and searches text lets other threads run."""
Matches = tuple[int, list[dict[str, Any]]]
MAX_MATCHES = 300
MEASURES = {
    "advantage": "token_advantages",
    "entropy": "token_entropies",
    "value": "token_values",
    "reward": "reward",
}
NEEDED = ("segment_ids", "token_advantages", "reward")
TEXTS = ("completion", "token_ends")
AT_A_PLACE = re.compile(r"[\^$]|\\[AzbB]")
"""What in an RE2 pattern looks beside the match: a segment may have it, its completion not."""


@dataclass
class Found:
    """What a search has so far."""

    done: int = 0
    total: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    matches: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)

    @property
    def floor(self) -> float:
        """A new match with a smaller |A| would not be shown."""
        if len(self.matches) < MAX_MATCHES:
            return 0.0
        return abs(self.matches[MAX_MATCHES - 1]["advantage"] or 0.0)

    @property
    def is_rare(self) -> bool:
        """At most half of the steps so far had a match, so a look at the texts alone is worth it
        before anything else is read of a file."""
        return 2 * sum(map(bool, self.counts.values())) <= len(self.counts)

    def add(self, step: int, count: int, shown: list[dict]) -> None:
        self.counts[step] = self.counts.get(step, 0) + count
        self.matches += [{"step": step, **match} for match in shown]
        if len(self.matches) > MAX_MATCHES:
            self.sort()

    def sort(self) -> None:
        self.matches.sort(key=lambda match: -abs(match["advantage"] or 0.0))
        del self.matches[MAX_MATCHES:]

    def finish(self, paths: dict[int, Path]) -> None:
        """Sorts, and reads the texts of those that stayed: most are overtaken before."""
        self.sort()
        waiting = defaultdict(list)
        for match in self.matches:
            if "part" in match:
                waiting[match["step"], match.pop("part")].append(match)
        for (step, part), of_file in waiting.items():
            try:
                add_texts(paths[step], part, of_file)
            except (ValueError, OSError, IndexError):  # written anew since
                for match in of_file:
                    match.setdefault("text", "")


def search_run(
    paths: dict[int, Path], query: dict[str, Any], first: float = BUDGET
) -> Iterator[Found]:
    """What was found so far, after `first` seconds, then about EVERY second, and at the end.

    Args:
        query: see `segments_of`.

    Raises:
        ValueError: the query is not valid.
    """
    check_query(query)
    found = Found(total=len(paths))
    due = time.monotonic() + first
    steps = sorted(paths, reverse=True)  # the newest first
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[Future] = deque()
        for step in steps:
            while len(ahead) < READERS + 1 and found.done + len(ahead) < len(steps):
                coming = steps[found.done + len(ahead)]
                file = (paths[coming], query, found.floor, found.is_rare)
                ahead.append(pool.submit(search_file, *file))
            take(found, step, ahead.popleft().result())
            found.done += 1
            if time.monotonic() > due and found.done < found.total:
                found.finish(paths)
                yield found
                due = time.monotonic() + EVERY
    found.finish(paths)
    yield found


def search_file(
    path: Path, query: dict[str, Any], floor: float, is_rare: bool
) -> list[Matches] | str:
    """`segments_of` one file; where the whole step is too large, of each prompt. A sentence where
    it cannot be read."""
    try:
        try:
            return [segments_of(path, query, None, floor, is_rare)]
        except TooLarge:
            groups = range(count_groups(path) or 0)
            return [segments_of(path, query, group, floor, is_rare) for group in groups]
    except (ValueError, OSError) as error:
        return str(error)


def take(found: Found, step: int, answer: list[Matches] | str) -> None:
    """Adds what `search_file` says of a step."""
    if isinstance(answer, str):
        found.skipped[step] = answer
        return
    for count, shown in answer:
        found.add(step, count, shown)


def find_in_run(paths: dict[int, Path], query: dict[str, Any], start: int = 0) -> dict[str, Any]:
    """One slice of a search, ascending from position `start` (for agents).

    Returns:
        `counts` {step: number of matches}, `matches`, `skipped` {step: reason} and `next`, the
        position to go on from, None at the end.
    """
    check_query(query)
    steps = sorted(paths)
    found = Found(total=len(paths))
    deadline = time.monotonic() + BUDGET
    position = max(0, start)
    while position < len(steps) and (position == start or time.monotonic() < deadline):
        step = steps[position]
        take(found, step, search_file(paths[step], query, found.floor, found.is_rare))
        position += 1
    found.finish(paths)
    return {
        "counts": found.counts,
        "matches": found.matches,
        "skipped": found.skipped,
        "next": position if position < len(steps) else None,
    }


def check_query(query: dict[str, Any]) -> None:
    """Raises ValueError with one sentence where the query is not valid."""
    for measure in MEASURES:
        bound(query, f"{measure}_min")
        bound(query, f"{measure}_max")
    matches([""], str(query.get("text") or ""))


def segments_of(
    path: Path, query: dict[str, Any], part: int | None, floor: float, is_rare: bool
) -> Matches:
    """The segments of a file that match: how many, and the MAX_MATCHES with the largest |A|; `part`
    is in those whose text was not read yet.

    Args:
        query: `advantage_min`, `advantage_max` and the same for entropy and value (all read at
            the segment's first token) and reward (of the completion), all inclusive; `text`, an
            RE2 pattern searched in the segment's text.
        part: only this row group.
        floor: matches whose |A| is not larger are counted and not returned; 0: all are.
        is_rare: whether to look at the texts first, and at nothing else where none has a match.
    """
    asked = [column for measure, column in MEASURES.items() if is_asked(query, measure)]
    pattern = str(query.get("text") or "")
    names = list(dict.fromkeys([*NEEDED, *asked, *(TEXTS if pattern else ())]))
    first = is_rare and pattern and not AT_A_PLACE.search(pattern)
    found = read_columns(path, names, part, (lambda x: occurs(x, pattern)) if first else None)
    if found is None:
        return 0, []
    table, size, first_row = found
    lengths, starts, rows = segment_places(table)
    columns = measures(table, starts, rows)
    keep = np.ones(len(starts), dtype=bool)
    for measure in MEASURES:
        keep &= within(columns.get(measure), query, measure, len(starts))
    chosen = np.flatnonzero(keep)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    stops = np.append(starts[1:], begins[-1])
    spans = (rows, starts - begins[rows], stops - begins[rows])
    if pattern:
        whole = segment_texts(table, begins, starts, rows)
        if whole is None:
            chosen = chosen[matches(texts_of(table, lengths, spans, chosen), pattern)]
        else:
            chosen = chosen[matches(whole, pattern)[chosen]]
    count = len(chosen)
    sizes = np.abs(np.nan_to_num(columns["advantage"][chosen]))
    order = np.argsort(-sizes, kind="stable")[:MAX_MATCHES]
    chosen = chosen[order[(sizes[order] > floor) | (floor == 0.0)]]
    texts = texts_of(table, lengths, spans, chosen) if pattern else None
    shown = []
    for at, i in enumerate(chosen.tolist()):
        row = int(rows[i]) + first_row
        shown.append(
            {
                "group": row // size,
                "completion": row % size,
                "token": int(spans[1][i]),
                "length": int(spans[2][i] - spans[1][i]),
                **({"text": texts[at][:200]} if texts else {"part": part}),
                **{measure: number(column[i]) for measure, column in columns.items()},
            }
        )
    return count, shown


def occurs(completions: pa.ChunkedArray, pattern: str) -> bool:
    """Whether any completion matches; else none of its segments does."""
    texts = completions.cast(pa.large_string()).combine_chunks()
    return bool(matches(texts, pattern).any())


def add_texts(path: Path, part: int | None, found: list[dict[str, Any]]) -> None:
    """Reads what the matches of a file say, or of one of its row groups."""
    table, size, first_row = read_columns(path, ["segment_ids", *TEXTS], part)
    rows = np.array([match["group"] * size + match["completion"] for match in found]) - first_row
    starts = np.array([match["token"] for match in found])
    stops = starts + np.array([match["length"] for match in found])
    lengths = np.diff(offsets(table, "segment_ids"))
    texts = texts_of(table, lengths, (rows, starts, stops), np.arange(len(found)))
    for match, text in zip(found, texts, strict=True):
        match["text"] = text[:200]


def is_asked(query: dict[str, Any], measure: str) -> bool:
    return any(query.get(f"{measure}_{end}") not in (None, "") for end in ("min", "max"))


def segment_places(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens per row (B,); and of each segment its first token in the flat arrays and its row."""
    ids = flat(table, "segment_ids")
    lengths = np.diff(offsets(table, "segment_ids"))
    is_start = np.ones(len(ids), dtype=bool)
    is_start[1:] = ids[1:] != ids[:-1]
    row_starts = np.cumsum(lengths) - lengths
    is_start[row_starts[lengths > 0]] = True
    starts = np.flatnonzero(is_start)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    return lengths, starts, row_of[starts]


def measures(table: pa.Table, starts: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of each segment that were read."""
    columns = {}
    for measure, name in MEASURES.items():
        if name not in table.column_names or table.column(name).null_count == len(table):
            continue
        if measure == "reward":
            reward = table.column(name).to_numpy().astype(np.float64)
            columns[measure] = reward[rows]
        else:
            columns[measure] = flat(table, name)[starts]
    return columns


def flat(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def offsets(table: pa.Table, name: str) -> np.ndarray:
    """Where each row's list begins in the flat array, and the end."""
    return table.column(name).combine_chunks().offsets.to_numpy()


def within(column: np.ndarray | None, query: dict[str, Any], measure: str, size: int) -> np.ndarray:
    low, high = bound(query, f"{measure}_min"), bound(query, f"{measure}_max")
    keep = np.full(size, column is not None or low is high is None)
    if column is not None and low is not None:
        keep &= column >= low
    if column is not None and high is not None:
        keep &= column <= high
    return keep


def segment_texts(
    table: pa.Table, begins: np.ndarray, starts: np.ndarray, rows: np.ndarray
) -> pa.Array | None:
    """The texts of all segments as one array over the bytes of the completions, without a copy.

    None where token ends do not cut the completions from their beginning to their end.
    """
    texts = table.column("completion").cast(pa.large_string()).combine_chunks()
    _, places, data = texts.buffers()
    if texts.offset or data is None:
        return None
    row_bytes = np.frombuffer(places, np.int64)[: len(texts) + 1]
    ends = flat(table, "token_ends").astype(np.int64)
    last = np.where(np.diff(begins) > 0, np.append(ends, 0)[begins[1:] - 1], 0)
    cuts = row_bytes[rows] + np.where(starts == begins[rows], 0, np.append(ends, 0)[starts - 1])
    cuts = np.append(cuts, row_bytes[-1])
    if not np.array_equal(last, np.diff(row_bytes)) or (np.diff(cuts) < 0).any():
        return None
    size = len(starts)
    return pa.Array.from_buffers(pa.large_string(), size, [None, pa.py_buffer(cuts), data])


def texts_of(table: pa.Table, lengths: np.ndarray, spans, chosen: np.ndarray) -> list[str]:
    """Text of each chosen segment; the offsets of a completion are computed once."""
    rows, starts, stops = (part[chosen].tolist() for part in spans)
    ends, begins = flat(table, "token_ends"), np.concatenate([[0], np.cumsum(lengths)])
    completions = table.column("completion")
    texts, known = [], {}
    for row, start, stop in zip(rows, starts, stops, strict=True):
        if row not in known:
            text = completions[row].as_py() or ""
            chars = char_ends(text, ends[begins[row] : begins[row + 1]])
            known[row] = text, [0, *chars.tolist()]
        text, places = known[row]
        texts.append(text[places[start] : places[stop]])
    return texts
