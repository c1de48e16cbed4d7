"""The search over a run: what it counts is what a plain loop counts, and what it shows is there."""

import numpy as np
import pytest
from inspector_fixtures import write_run

from spo.inspector import bounded, search
from spo.inspector.folder import Folder
from spo.inspector.reading import read_step


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "alpha", steps=(1, 2, 10))


@pytest.mark.parametrize("query", [{"text": "("}, {"reward_min": "high"}])
def test_wrong_queries_are_one_sentence(run, query):
    with pytest.raises(ValueError, match=r"not valid|not a number"):
        next(search.search_run(Folder(run).steps("alpha").paths, query))


def test_search_counts_what_a_plain_loop_counts(run):
    paths = Folder(run).steps("alpha").paths
    query = {"advantage_max": -0.5, "entropy_min": 1.0, "text": "the"}
    (found,) = search.search_run(paths, query, first=60)
    for number, path in paths.items():
        step = read_step(path)
        assert found.counts[number] == sum(1 for _ in matching_segments(step))
    assert all("the" in match["text"] and match["advantage"] <= -0.5 for match in found.matches)
    sizes = [abs(match["advantage"]) for match in found.matches]
    assert sizes == sorted(sizes, reverse=True)
    for match in found.matches:
        credit = read_step(paths[match["step"]]).credit
        row = 4 * match["group"] + match["completion"]
        assert credit.token_advantages[row, match["token"]] == pytest.approx(match["advantage"])
    sliced = search.find_in_run(paths, query)
    assert sliced["counts"] == found.counts
    assert sliced["next"] is None


def test_the_largest_are_kept_of_more_than_are_shown(run, monkeypatch):
    paths = Folder(run).steps("alpha").paths
    (every,) = search.search_run(paths, {"entropy_min": 0.0}, first=60)
    monkeypatch.setattr(search, "MAX_MATCHES", 5)
    (few,) = search.search_run(paths, {"entropy_min": 0.0}, first=60)
    assert few.counts == every.counts
    sizes = [abs(match["advantage"]) for match in few.matches]
    assert sizes == [abs(match["advantage"]) for match in every.matches[:5]]


def test_a_step_too_large_is_searched_prompt_by_prompt(run, monkeypatch):
    paths = Folder(run).steps("alpha").paths
    (whole,) = search.search_run(paths, {"text": "the"}, first=60)
    tokens = int(read_step(paths[1]).rollouts.lengths.sum())
    monkeypatch.setattr(bounded, "MAX_VALUES", tokens * 2 // 3)
    (parts,) = search.search_run(paths, {"text": "the"}, first=60)
    assert parts.counts == whole.counts
    assert parts.matches == whole.matches


def test_an_unreadable_step_is_skipped_and_the_others_are_searched(tmp_path):
    shown = write_run(tmp_path / "beta", steps=(1, 2))
    path = shown / "rollouts" / "step-000002.parquet"
    path.write_bytes(b"PAR1" + b"\xff" * 400 + b"PAR1")
    (found,) = search.search_run(Folder(shown).steps("beta").paths, {"entropy_min": 0.0}, first=60)
    assert found.counts[1] > 0
    assert "damaged" in found.skipped[2]


def matching_segments(step):
    """The reference: segments with A ≤ −0.5 whose first token has H ≥ 1 and that say "the"."""
    rollouts, credit = step.rollouts, step.credit
    for row, text in enumerate(rollouts.completions):
        data = text.encode()
        length = int(rollouts.lengths[row])
        ids = credit.segment_ids[row, :length]
        ends = [0, *rollouts.token_ends[row, :length]]
        for segment in range(ids.max() + 1):
            tokens = np.flatnonzero(ids == segment)
            piece = data[ends[tokens[0]] : ends[tokens[-1] + 1]].decode()
            low = credit.token_advantages[row, tokens[0]] <= -0.5
            if low and rollouts.token_entropies[row, tokens[0]] >= 1 and "the" in piece:
                yield segment


def test_texts_cut_elsewhere_are_searched_all_the_same(run, monkeypatch):
    """Where token ends do not cover a completion, the segments are cut out one by one."""
    paths = Folder(run).steps("alpha").paths
    (quick,) = search.search_run(paths, {"text": "sum|日"}, first=60)
    monkeypatch.setattr(search, "segment_texts", lambda *_: None)
    (careful,) = search.search_run(paths, {"text": "sum|日"}, first=60)
    assert quick.counts == careful.counts
    assert quick.matches == careful.matches


@pytest.mark.parametrize(
    "text", ["no such words", "sum|日", "(?i)THE", "^ ?[a-z]", r"the\b", "[^x]$"]
)
def test_a_file_passed_over_holds_no_match(run, monkeypatch, text):
    """A pattern that no completion has is answered without the other columns; the others, and
    those that look beside a match, as if all had been read."""
    paths = Folder(run).steps("alpha").paths
    (found,) = search.search_run(paths, {"text": text}, first=60)
    monkeypatch.setattr(search, "occurs", lambda *_: True)
    (careful,) = search.search_run(paths, {"text": text}, first=60)
    assert (found.counts, found.matches) == (careful.counts, careful.matches)
    assert bool(found.matches) == (text != "no such words")
