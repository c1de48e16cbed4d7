"""spo.segments: which tokens become boundaries, and the segments they cut."""

import inspect
import time

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from spo.segments import (
    MIN_BOUNDARY_ENTROPY,
    entropy_threshold,
    find_boundaries,
    segment_ids_from_boundaries,
    segment_starts,
)

lengths_of_rows = st.lists(st.integers(0, 7), min_size=1, max_size=5)
fractions = st.one_of(st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.floats(0.0, 1.0))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), lengths=lengths_of_rows, p=fractions)
def test_boundaries_and_ids_equal_their_twins(seed, lengths, p):
    batch = reference.ragged(seed, lengths)
    found = find_boundaries(batch["entropies"], batch["mask"], p)
    expected = reference.boundaries(batch["entropies"], batch["mask"], p)
    np.testing.assert_array_equal(found, expected)
    ids = segment_ids_from_boundaries(found, batch["mask"])
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, reference.segment_ids(expected, batch["mask"]))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.05, 0.2, 0.333, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_exactly_round_p_n_tokens_and_no_lower_entropy_among_them(p, seed):
    mask = reference.mask_of([13, 1, 0, 40, 7])
    entropies = np.random.default_rng(seed).uniform(0.1, 2.0, mask.shape)
    found = find_boundaries(entropies, mask, p)
    assert found.sum() == round(p * mask.sum())
    assert not (found & ~mask).any()
    rest = mask & ~found
    if found.any() and rest.any():
        assert entropies[found].min() >= entropies[rest].max()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6])
def test_ties_go_to_the_earlier_row_then_the_earlier_position(count):
    mask = reference.mask_of([3, 3])
    found = find_boundaries(np.full(mask.shape, 0.7), mask, count / 6)
    assert np.flatnonzero(found).tolist() == list(range(count))


def test_ties_at_the_cut_do_not_displace_higher_entropies():
    entropies = np.array([[0.5, 0.5, 0.9], [0.5, 0.9, 0.5]])
    found = find_boundaries(entropies, np.ones((2, 3), bool), 0.5)
    assert found.tolist() == [[True, False, True], [False, True, False]]


def test_a_certain_token_is_no_boundary_unless_all_are_asked_for():
    entropies = np.array([[0.0, 1e-6, 2e-6, 0.3]])
    mask = np.ones((1, 4), bool)
    assert MIN_BOUNDARY_ENTROPY == 1e-6
    assert find_boundaries(entropies, mask, 0.99).tolist() == [[False, False, True, True]]
    assert find_boundaries(np.zeros((1, 4)), mask, 0.75).sum() == 0
    assert find_boundaries(entropies, mask, 1.0).all()


def test_one_row_can_hold_all_boundaries_of_the_batch():
    entropies = np.array([[0.1, 0.1, 0.1, 0.1], [3.0, 4.0, 5.0, 6.0]])
    found = find_boundaries(entropies, np.ones((2, 4), bool), 0.5)
    assert found.sum(1).tolist() == [0, 4]


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 99.0])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_masked_entropies_neither_rank_nor_count(garbage, p):
    mask = reference.mask_of([4, 2, 0])
    entropies = np.random.default_rng(0).uniform(0.1, 1.0, mask.shape)
    dirty = np.where(mask, entropies, garbage)
    np.testing.assert_array_equal(
        find_boundaries(entropies, mask, p), find_boundaries(dirty, mask, p)
    )


def test_extra_padding_columns_change_nothing():
    lengths = [4, 2, 6]
    narrow = reference.ragged(5, lengths)
    wide_mask = reference.mask_of(lengths, 9)
    wide_entropies = np.pad(narrow["entropies"], ((0, 0), (0, 3)), constant_values=50.0)
    found = find_boundaries(wide_entropies, wide_mask, 0.4)
    np.testing.assert_array_equal(
        found[:, :6], find_boundaries(narrow["entropies"], narrow["mask"], 0.4)
    )
    assert not found[:, 6:].any()


def test_arguments_are_not_changed_and_the_result_shares_no_memory():
    entropies, mask = np.array([[0.1, 0.9, 0.5]]), np.ones((1, 3), bool)
    for p in (0.4, 1.0):
        found = find_boundaries(entropies, mask, p)
        segment_starts(segment_ids_from_boundaries(found, mask))
        found[:] = False
    assert mask.all()
    assert entropies.tolist() == [[0.1, 0.9, 0.5]]


def test_300_000_tokens_in_under_a_second():
    mask = np.ones((300, 1000), bool)
    entropies = np.random.default_rng(0).exponential(1.0, mask.shape).astype(np.float32)
    begin = time.perf_counter()
    found = find_boundaries(entropies, mask, 0.05)
    ids = segment_ids_from_boundaries(found, mask)
    assert time.perf_counter() - begin < 1.0
    assert found.sum() == 15_000
    assert (ids.max(1) + 1).sum() == (found[:, 1:].sum(1) + 1).sum()


@pytest.mark.parametrize("p", [-0.01, 1.01, float("nan")])
def test_a_fraction_outside_0_1_is_refused(p):
    with pytest.raises(ValueError, match="entropy_percentile"):
        find_boundaries(np.ones((1, 2)), np.ones((1, 2), bool), p)


def test_shapes_that_differ_are_refused():
    unchecked = inspect.unwrap(find_boundaries)  # the suite's type check would refuse them first
    with pytest.raises(ValueError, match="must have one shape"):
        unchecked(np.ones((1, 3)), np.ones((1, 2), bool), 0.5)


def test_nan_at_a_valid_token_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        find_boundaries(np.array([[0.1, np.nan]]), np.ones((1, 2), bool), 0.5)


def test_segment_ids_count_every_token_before_the_first_boundary():
    mask = reference.mask_of([5, 3, 0, 1], 6)
    marked = np.zeros(mask.shape, bool)
    marked[0, [2, 3]] = True
    marked[1, [0, 4]] = True  # token 0 starts segment 0 anyway; 4 lies in the padding
    assert segment_ids_from_boundaries(marked, mask).tolist() == [
        [0, 0, 1, 2, 2, -1],
        [0, 0, 0, -1, -1, -1],
        [-1] * 6,
        [0, -1, -1, -1, -1, -1],
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), lengths=lengths_of_rows)
def test_segment_starts_are_the_first_tokens_of_segments(seed, lengths):
    ids = reference.ragged(seed, lengths)["ids"]
    expected = np.zeros(ids.shape, bool)
    for b, row in enumerate(ids):
        for tokens in reference.segments_of_row(row):
            expected[b, tokens[0]] = True
    np.testing.assert_array_equal(segment_starts(ids), expected)


def test_entropy_threshold_is_the_lowest_entropy_that_became_a_boundary():
    entropies, mask = np.array([[0.2, 0.9, 0.5, 0.7]]), np.ones((1, 4), bool)
    assert entropy_threshold(entropies, mask, 0.5) == 0.7
    assert entropy_threshold(entropies, mask, 0.0) is None
    assert entropy_threshold(entropies, mask, 1.0) == entropies[mask].min()
