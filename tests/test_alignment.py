"""spo/values/alignment.py: completions beside their references."""

import math
import re

import numpy as np
import pytest
from critic_rollouts import rollouts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from spo.values.alignment import ITEMS, align, clean_reference

PIECES = st.sampled_from(
    ["1", "2", "12", "-", "3", ")", "(", "=", " ", "ab", "a", "B", "é", "—", "_", "\n"]
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)
KINDS = st.sampled_from(sorted(ITEMS))


def naive_inputs(prompt: str, before: str, reference: str, kind: str) -> list[float]:
    """The seven inputs from nothing but the text before the token."""
    pattern = ITEMS[kind]
    expected = [item.casefold() for item in pattern.findall(reference)]
    in_prompt = [item.casefold() for item in pattern.findall(prompt)]
    if not expected:
        return [0.0] * 7
    written, begun = [], None
    for match in pattern.finditer(before):
        if match.end() < len(before):
            written.append(match.group().casefold())
        else:
            begun = match.group().casefold()
    weight = [1 / (expected.count(r) + in_prompt.count(r)) for r in expected]
    pointer = foreign = since = 0
    last_foreign, share_of_run = False, 1.0
    for n, item in enumerate(written, start=1):
        for j in range(pointer, min(pointer + 4, len(expected))):
            if expected[j] == item:
                pointer = j + 1
                break
        run = longest_common_ending(written[:n], expected)
        last_foreign = item not in expected and item not in in_prompt
        foreign += last_foreign
        since = 0 if run >= min(3, n) else since + 1
        share_of_run = min(run, 6, n) / min(6, n)
    coming = expected[pointer : pointer + 4]
    return [
        sum(weight[:pointer]) / sum(weight),
        math.log(1 + foreign),
        float(last_foreign),
        share_of_run,
        math.log(1 + since),
        float(pointer == len(expected)),
        float(begun is not None and not any(r.startswith(begun) for r in coming)),
    ]


def longest_common_ending(written: list[str], expected: list[str]) -> int:
    """The longest end of `written` that stands anywhere in `expected`."""
    for length in range(len(written), 0, -1):
        for start in range(len(expected) - length + 1):
            if expected[start : start + length] == written[-length:]:
                return length
    return 0


def inputs_of(prompt, completion, reference, kind, cuts=None):
    rollouts = rollouts_of([completion], [prompt], cuts=cuts and [cuts])
    return align(
        [prompt], [completion], [reference], rollouts.token_ends, rollouts.completion_mask, kind
    ).inputs[0]


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, TEXTS, KINDS)
def test_it_equals_the_naive_twin_which_sees_only_the_text_before(prompt, text, reference, kind):
    found = inputs_of(prompt, text, reference, kind)
    assert len(found) == len(text) + 1
    for t in range(len(text) + 1):
        assert found[t] == pytest.approx(naive_inputs(prompt, text[:t], reference, kind)), t


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, KINDS)
def test_what_comes_later_moves_nothing_before(prompt, before, one, other, reference, kind):
    first = inputs_of(prompt, before + one, reference, kind)
    second = inputs_of(prompt, before + other, reference, kind)
    np.testing.assert_array_equal(first[: len(before) + 1], second[: len(before) + 1])


def test_tokens_of_several_characters_and_bytes():
    """Token ends are bytes: é has two, — three; a token may end between any two characters."""
    text = "é—12 = 3"
    by_character = inputs_of("", text, "12 = 3", "numbers")
    cut = inputs_of("", text, "12 = 3", "numbers", cuts=[5, 1, 1, 3, 1])  # é— 1 2 " = " 3
    np.testing.assert_array_equal(cut, by_character[[0, 2, 3, 4, 7, 8]])
    assert cut[4, 0] == 0.5  # 12 is written, 3 is not


def test_a_mistake_shows_at_once():
    """ "4-1=3" then "3+7=12" for 10: the 1 may go on to 10, the 12 is foreign."""
    prompt, reference = "4 - 1 + 7", "4-1=3\n3+7=10"
    right = inputs_of(prompt, "4-1=3\n3+7=10\n", reference, "numbers")
    wrong = inputs_of(prompt, "4-1=3\n3+7=12\n", reference, "numbers")
    np.testing.assert_array_equal(right[:12], wrong[:12])
    assert right[12, 6] == 0
    assert wrong[12, 6] == 1  # 12 is begun, and no beginning of 10
    assert right[13].tolist() == [1, 0, 0, 1, 0, 1, 0]
    assert wrong[13, 1:3].tolist() == pytest.approx([math.log(2), 1])
    assert wrong[13, 3] == 0


def test_words_are_compared_without_case_and_rare_ones_count_more():
    reference = "the quick fox, the end"
    found = inputs_of("the end", "The quick fox the end.", reference, "words")
    progress = found[:, 0]
    shares = np.array([1 / 3, 1, 1, 1 / 3, 1 / 2]) / (1 / 3 + 1 + 1 + 1 / 3 + 1 / 2)
    np.testing.assert_allclose(progress[[4, 10, 14, 18, 22]], shares.cumsum())


def test_symbols_are_identifiers_and_single_signs():
    assert ITEMS["symbols"].findall("x_1 += f(2)") == ["x_1", "+", "=", "f", "(", "2", ")"]


@pytest.mark.parametrize("reference", [None, "", "no number"])
def test_without_items_in_a_reference_all_is_zero_and_the_row_is_marked(reference):
    rollouts = rollouts_of(["1+1=2", "3"], ["1+1", "2"])
    found = align(
        rollouts.prompts,
        rollouts.completions,
        [reference, "3"],
        rollouts.token_ends,
        rollouts.completion_mask,
    )
    assert found.missing.tolist() == [True, False]
    assert not found.inputs[0].any()
    assert found.inputs[1].any()
    assert not found.inputs[~rollouts.completion_mask].any()


def test_how_far_the_reference_was_read():
    reference = "first 4, then 15"
    rollouts = rollouts_of(["4 15 ."], [""])
    found = align(
        [""], rollouts.completions, [reference], rollouts.token_ends, rollouts.completion_mask
    )
    assert found.reference_read[0, :6].tolist() == [0, 0, 7, 7, 7, 16]


def test_calculator_notes_are_removed():
    text = "She has 2*3=<<2*3=6>>6 eggs and 6-1=<<6-1=5>>5 left.\n#### 5"
    assert "<<" not in clean_reference(text)
    assert re.findall(r"\d+", clean_reference(text)) == ["2", "3", "6", "6", "1", "5", "5"]
