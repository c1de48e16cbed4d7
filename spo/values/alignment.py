"""How far a completion agrees with a reference solution before each token. Pure numpy.

A solution goes through items that have to come out right: numbers, words, symbols. Where the
completion's items follow those of the reference, it is on the right way; where they stop doing so,
it has left it. A reference solution is fixed before the completion is sampled, so a value may
read it.

Axes: B completions, T completion tokens, N items of a completion, M items of its reference.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

NUM_INPUTS = 7
WINDOW = 4
"""How many of the reference's items may come next: up to three may be left out."""
FULL_RUN = 6
RUN_IN_STEP = 3
ItemKind = Literal["numbers", "words", "symbols"]
ITEMS: dict[ItemKind, re.Pattern] = {
    "numbers": re.compile(r"(?<![\d)])-?\d+|\d+"),
    "words": re.compile(r"[^\W\d_]+"),
    "symbols": re.compile(r"\w+|[^\w\s]"),
}
"""What counts as an item. Where one ends is clear a character behind it, whatever follows: a
pattern that looked further ahead would let a value see the future."""
CALCULATOR_NOTES = re.compile(r"<<[^<>]*>>")


def clean_reference(text: str) -> str:
    """Without GSM8K's calculator notes.

    >>> clean_reference("2+3=<<2+3=5>>5 eggs")
    '2+3=5 eggs'
    """
    return CALCULATOR_NOTES.sub("", text)


@dataclass(frozen=True)
class Alignment:
    """Completions beside their references, before each token.

    Attributes:
        inputs: numbers for a regression, see `align`; 0 on padding and without a reference.
        reference_read: characters of the reference up to the end of the last item that the
            completion has followed; 0 before the first.
        missing: the row has no reference, or one without items.
    """

    inputs: Float[np.ndarray, "B T 7"]
    reference_read: Int[np.ndarray, "B T"]
    missing: Bool[np.ndarray, " B"]


def align(
    prompts: Sequence[str],
    completions: Sequence[str],
    references: Sequence[str | None],
    token_ends: Int[np.ndarray, "B T"],
    completion_mask: Bool[np.ndarray, "B T"],
    items: ItemKind = "numbers",
) -> Alignment:
    """Follow each completion's items through those of its reference, r_1 … r_M.

    Before a token that begins at text position p, items that end before p are written; one that
    ends at p may still go on and counts as begun. An item among the next four expected moves the
    pointer behind it. For each item, run_j = 1 + (run_{j−1} of the item before) where r_j equals
    it, else 0; run = max_j run_j. The run is short for the n-th item below min(3, n). Inputs:

        0  share of the reference before the pointer, an item that is rare in reference and prompt
           counting more: weight 1 / (its number in both)
        1  ln(1 + items written that stand in neither reference nor prompt)
        2  whether the last item is such a one
        3  min(run, 6, n) / min(6, n)
        4  ln(1 + items since the run was last not short)
        5  whether the pointer is at the end
        6  whether the item begun is no beginning of an expected one

    >>> found = align(["1+2-4"], ["1+2=3\\n3-4=5"], ["1+2=3\\n3-4=-1"], np.arange(1, 12)[None],
    ...               np.ones((1, 11), bool))
    >>> found.inputs[0, [0, 4, 6, 10], 0].round(2)  # before "1", "3", "3" and "5"
    array([0.  , 0.29, 0.43, 0.71])
    """
    rows = [
        _Row.read(prompt, completion, reference, ITEMS[items])
        for prompt, completion, reference in zip(prompts, completions, references, strict=True)
    ]
    positions = _token_positions(completions, token_ends)
    inputs = np.zeros((*completion_mask.shape, NUM_INPUTS))
    reference_read = np.zeros(completion_mask.shape, dtype=np.int64)
    for b, row in enumerate(rows):
        if not row.expected:
            continue
        length = int(completion_mask[b].sum())
        at = positions[b, :length]
        written = np.searchsorted(row.ends, at, side="left")
        pointers = _pointers(row.item_ids, row.expected_ids)
        by_item = _inputs_after_items(row, pointers)
        inputs[b, :length, :-1] = by_item[written]
        inputs[b, :length, -1] = _begun_wrongly(row, completions[b], at, written, pointers)
        reference_read[b, :length] = row.read_at[pointers[written]]
    missing = np.array([not row.expected for row in rows], dtype=bool)
    return Alignment(inputs, reference_read, missing)


def followed_items(
    completion: str, reference: str, items: ItemKind = "numbers"
) -> list[tuple[int, int, int, int]]:
    """Where a completion follows its reference: of each item that moves the pointer its begin and
    end in the completion and in the reference, in characters.

    >>> followed_items("1+2=3, 9", "so 1+2=3")
    [(0, 1, 3, 4), (2, 3, 5, 6), (4, 5, 7, 8)]
    """
    row = _Row.read("", completion, reference, ITEMS[items])
    if not row.expected:
        return []
    pointers = _pointers(row.item_ids, row.expected_ids)
    places = [match.span() for match in ITEMS[items].finditer(reference)]
    moved = np.flatnonzero(np.diff(pointers))
    return [
        (int(row.begins[i]), int(row.ends[i]), *places[pointers[i + 1] - 1]) for i in moved.tolist()
    ]


@dataclass(frozen=True)
class _Row:
    """The items of one completion and of its reference; equal items have equal ids.

    Attributes:
        expected: the reference's items, M of them; none without a reference.
        weights_before: share of all weight before each pointer position, (M + 1,).
        read_at: characters of the reference before each pointer position, (M + 1,).
        begins, ends: where the completion's items stand, in characters.
        foreign: items that stand in neither reference nor prompt.
    """

    pattern: re.Pattern
    expected: list[str]
    expected_ids: Int[np.ndarray, " M"]
    weights_before: Float[np.ndarray, " _"]
    read_at: Int[np.ndarray, " _"]
    item_ids: Int[np.ndarray, " N"]
    begins: Int[np.ndarray, " N"]
    ends: Int[np.ndarray, " N"]
    foreign: Bool[np.ndarray, " N"]

    @classmethod
    def read(cls, prompt: str, completion: str, reference: str | None, pattern: re.Pattern):
        found = list(pattern.finditer(reference or ""))
        expected = [match.group().casefold() for match in found]
        written = list(pattern.finditer(completion)) if expected else []
        items = [match.group().casefold() for match in written]
        known = Counter(expected)
        known.update(item.casefold() for item in pattern.findall(prompt) if expected)
        ids = {item: i for i, item in enumerate(known)}
        weights = np.array([1 / known[item] for item in expected])
        return cls(
            pattern=pattern,
            expected=expected,
            expected_ids=np.array([ids[item] for item in expected], dtype=np.int64),
            weights_before=np.concatenate([[0.0], np.cumsum(weights) / max(weights.sum(), 1e-9)]),
            read_at=np.array([0, *(match.end() for match in found)]),
            item_ids=np.array([ids.get(item, -1) for item in items], dtype=np.int64),
            begins=np.array([match.start() for match in written], dtype=np.int64),
            ends=np.array([match.end() for match in written], dtype=np.int64),
            foreign=np.array([item not in ids for item in items], dtype=bool),
        )


def _token_positions(
    completions: Sequence[str], token_ends: Int[np.ndarray, "B T"]
) -> Int[np.ndarray, "B T"]:
    """Characters of the completion before each token; token ends are in UTF-8 bytes."""
    positions = np.zeros_like(token_ends)
    positions[:, 1:] = np.maximum(token_ends[:, :-1], 0)
    for row, text in enumerate(completions):
        if not text.isascii():
            character_ends = np.cumsum([len(character.encode()) for character in text])
            positions[row] = np.searchsorted(character_ends, positions[row], side="right")
    return positions


def _pointers(
    items: Int[np.ndarray, " N"], expected: Int[np.ndarray, " M"]
) -> Int[np.ndarray, " _"]:
    """Items of the reference passed after 0, 1, … N items of the completion, (N + 1,)."""
    coming, pointer = expected.tolist(), 0
    pointers = [0]
    for item in items.tolist():
        window = coming[pointer : pointer + WINDOW]
        if item in window:
            pointer += window.index(item) + 1
        pointers.append(pointer)
    return np.array(pointers)


def _runs(items: Int[np.ndarray, " N"], expected: Int[np.ndarray, " M"]) -> Int[np.ndarray, " N"]:
    """For each item how many up to it stand side by side in the reference as well, at most six.

    Two sequences of k items are the same where their first k − 1 have one code and their last ones
    are equal; each such pair gets the next code.
    """
    codes, expected_codes = np.zeros_like(items), np.zeros_like(expected)
    known = np.ones(len(items), dtype=bool)
    runs = np.zeros(len(items), dtype=np.int64)
    base = max(expected.max(), items.max(initial=0)) + 2
    for length in range(1, FULL_RUN + 1):
        pairs, inverse = np.unique(expected_codes * base + expected + 1, return_inverse=True)
        wanted = codes * base + items + 1
        place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        known &= (pairs[place] == wanted) & (np.arange(len(items)) >= length - 1)
        runs += known
        # code 0 is that of the nothing before an item; what follows on no sequence gets −1
        codes = np.where(known, place + 1, -1)
        expected_codes = inverse + 1
        codes[1:], expected_codes[1:] = codes[:-1].copy(), expected_codes[:-1].copy()
        codes[:1] = expected_codes[:1] = -1
        known[1:] = known[:-1].copy()
    return runs


def _inputs_after_items(row: _Row, pointers: Int[np.ndarray, " _"]) -> Float[np.ndarray, "_ 6"]:
    """The inputs of `align` but the last one, after 0, 1, … N items, (N + 1, 6)."""
    count = np.arange(len(pointers))
    runs = np.concatenate([[0], _runs(row.item_ids, row.expected_ids)])
    foreign = np.concatenate([[False], row.foreign])
    most = np.clip(count, 1, FULL_RUN)
    in_step = runs >= np.minimum(count, RUN_IN_STEP)
    inputs = (
        row.weights_before[pointers],
        np.log1p(np.cumsum(foreign)),
        foreign,
        np.where(count > 0, np.minimum(runs, most) / most, 1.0),
        np.log1p(count - np.maximum.accumulate(np.where(in_step, count, 0))),
        pointers == len(row.expected),
    )
    return np.stack(inputs, axis=-1)


def _begun_wrongly(
    row: _Row,
    text: str,
    positions: Int[np.ndarray, " L"],
    written: Int[np.ndarray, " L"],
    pointers: Int[np.ndarray, " _"],
) -> Bool[np.ndarray, " L"]:
    """Whether an item goes on or ends at each position that is no beginning of an expected one."""
    wrong = np.zeros(len(positions), dtype=bool)
    begins = np.append(row.begins, len(text) + 1)[written]
    for i in np.flatnonzero(begins < positions):
        begin, position, pointer = int(begins[i]), int(positions[i]), int(pointers[written[i]])
        # what stands there may be no item yet, such as the sign of a number
        if row.pattern.fullmatch(text, begin, position):
            begun = text[begin:position].casefold()
            expected = row.expected[pointer : pointer + WINDOW]
            wrong[i] = not any(item.startswith(begun) for item in expected)
    return wrong
