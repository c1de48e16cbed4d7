"""spo/values: every source is a baseline, remembers what it should, and refuses bad input."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from critic_rollouts import rollouts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from spo import SPOConfig
from spo.advantages import assign_credit
from spo.generation.engine import SamplingParams
from spo.rollouts import Completions, Rollouts
from spo.segments import find_boundaries, segment_ids_from_boundaries
from spo.values.coefficient import value_coefficients
from spo.values.critic import Critic
from spo.values.hint import HintInputs
from spo.values.monte_carlo import MonteCarloInputs
from spo.values.peers import PeerInputs, leave_one_out
from spo.values.prompt_memory import HistoryInputs, PromptMemory
from spo.values.reference import ReferenceInputs
from spo.values.references import References, right_siblings
from spo.values.regression import Regression
from spo.values.rest import RestInputs, ScoredReference
from spo.values.surprisal import SurprisalInputs

PROMPT = "1+2"
REFERENCES = {"solution": ["1+2=3"] * 6, "answer": [3] * 6, "prompt": [PROMPT] * 6}
EARLIER = ["1+2=3", "1+2=4", "2+1=3", "12", "3", "1"]


def cut(rollouts: Rollouts) -> np.ndarray:
    """Segments of two tokens."""
    positions = np.arange(rollouts.completion_mask.shape[1])
    return np.where(rollouts.completion_mask, positions // 2, -1)


def critic(inputs: list, origins: list[str] | None = None, memory=None) -> Critic:
    memory = memory or PromptMemory(1.0, 8, 16)
    references = References(origins, 1.0, memory) if origins else None
    args = SPOConfig(lam=1.0, normalize_advantages=False)
    return Critic([Regression(inputs)], args, references, memory)


def score_by_length(rollouts: Rollouts) -> list[ScoredReference | None]:
    """Each character of a reference a token."""
    return [
        None if text is None else ScoredReference(*_numbers(len(text)))
        for text in rollouts.references
    ]


def _numbers(count: int):
    positions = np.arange(count)
    return positions + 1, -np.cos(positions) - 1.5, np.sin(positions) + 1.5


def hinted_ids(rollouts: Rollouts) -> list[list[int]]:
    return [[ord(c) for c in text or ""] for text in rollouts.references]


def score_by_ids(prompt_ids: list[list[int]], token_ids: list[list[int]]):
    """A causal model of a kind: what it says of a token depends on all before it and on the token,
    its entropy on all before it."""
    before = [np.cumsum([sum(p), *t])[:-1] for p, t in zip(prompt_ids, token_ids, strict=True)]
    logprobs = [-1.5 - np.cos(b + t) for b, t in zip(before, map(np.array, token_ids), strict=True)]
    return logprobs, [1.5 + np.sin(b) for b in before]


def go_on(prompts, params, step) -> Completions:
    """One more token, which follows from those before it and which continuation it is."""
    ids = [
        [(sum(b) + int(r) % 2) % 7 + 1]
        for b, r in zip(prompts.prompt_ids, prompts.rows, strict=True)
    ]
    return Completions(prompts.prompt_ids, ids, [False] * len(ids))


def pay_last(prompts, texts, completions) -> np.ndarray:
    return np.array([ids[-1] / 7 for ids in completions.token_ids])


CHARACTERS = SimpleNamespace(
    batch_decode=lambda rows, **_: ["".join(map(chr, row)) for row in rows],
    decode=lambda row, **_: "".join(map(chr, row)),
)


def continued(num_segments: int | None = None) -> MonteCarloInputs:
    params = SamplingParams(max_new_tokens=50, eos_token_ids=(0,), temperature=1.0)
    return MonteCarloInputs(go_on, params, CHARACTERS, pay_last, 2, num_segments)


def critics() -> dict[str, Critic]:
    """Each source alone and all together, fitted on a few earlier completions."""
    surprisal, reference, peers = SurprisalInputs(), ReferenceInputs(), PeerInputs()
    memory = PromptMemory(1.0, 8, 16)
    history = HistoryInputs(memory)
    made = {
        "surprisal": critic([surprisal]),
        "column": critic([reference], ["solution"]),
        "symbols": critic([ReferenceInputs(["symbols"])], ["solution"]),
        "rest": critic([RestInputs(score_by_length)], ["solution"]),
        "hint": critic([HintInputs(hinted_ids, score_by_ids)], ["solution"]),
        "peer": critic([reference], ["peer"]),
        "hint_of_peer": critic([HintInputs(hinted_ids, score_by_ids)], ["peer"]),
        "memory": critic([reference], ["memory"]),
        "peers": critic([peers]),
        "history": critic([HistoryInputs(PromptMemory(1.0, 8, 16))]),
        "monte_carlo": critic([continued()]),
        "all": critic(
            [
                *(surprisal, reference, RestInputs(score_by_length), peers, history),
                *(HintInputs(hinted_ids, score_by_ids), continued()),
            ],
            ["memory", "peer", "answer"],
            memory,
        ),
    }
    for each in made.values():
        for seed in range(3):
            earlier = rollouts_of(
                EARLIER, [PROMPT] * 6, [1, 0, 1, 0, 0.5, 0], 3, REFERENCES, [0] * 6, seed=seed
            )
            ids = cut(earlier)
            read, _ = each.read(earlier, ids)
            each.fit(read, assign_credit(read, each.args, ids))
    return made


CRITICS = critics()


def values_of(name: str, rollouts: Rollouts) -> np.ndarray:
    return CRITICS[name].read(rollouts, cut(rollouts))[0].token_values


PIECES = st.lists(st.sampled_from(["1", "2", "3", "+", "=", " ", "12"]), max_size=8).map("".join)


@settings(max_examples=60, deadline=None)
@given(PIECES, PIECES, PIECES, st.lists(PIECES, min_size=2, max_size=2), st.integers(0, 2))
def test_no_source_sees_the_token_or_what_follows(before, one, other, siblings, place):
    """Everything from token t on is exchanged, the reward as well; values up to t stay."""
    found = []
    for rest, reward in ((one, 1.0), (other, 0.0)):
        texts, rewards = list(siblings), [1.0, 0.0]
        texts.insert(place, before + rest)
        rewards.insert(place, reward)
        columns = {name: column[:3] for name, column in REFERENCES.items()}
        rollouts = rollouts_of(texts, [PROMPT] * 3, rewards, 3, columns, [0] * 3)
        positions = np.arange(rollouts.completion_mask.shape[1])
        logprobs = rollouts.token_logprobs_old.copy()
        logprobs[place, positions >= len(before)] -= reward
        entropies = rollouts.token_entropies.copy()
        entropies[place, positions > len(before)] += reward  # that at t is known at t
        found.append(replace(rollouts, token_logprobs_old=logprobs, token_entropies=entropies))
    for name in CRITICS:
        first, second = (values_of(name, r)[place, : len(before) + 1] for r in found)
        np.testing.assert_array_equal(first, second, err_msg=name)


# --- an enumerated problem ------------------------------------------------------------------------

ALPHABET = ("1", "3", "=")
LENGTH = 3
LOGITS = np.random.default_rng(5).normal(size=(LENGTH, 3))


def enumerated():
    """All texts of three tokens, their probabilities and scores ∇ log π, by token."""
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    choices = list(itertools.product(range(3), repeat=LENGTH))
    texts = ["".join(ALPHABET[i] for i in choice) for choice in choices]
    chances = np.array([np.prod(probabilities[range(LENGTH), choice]) for choice in choices])
    scores = np.zeros((len(choices), LENGTH, LENGTH, 3))
    for row, choice in enumerate(choices):
        for t, token in enumerate(choice):
            scores[row, t, t] = np.eye(3)[token] - probabilities[t]
    rewards = np.array([float("1=" in text) + 0.5 * text.endswith("3") for text in texts])
    return texts, chances, scores, rewards


TEXTS, CHANCES, SCORES, REWARDS = enumerated()
PAIRS = list(itertools.product(range(len(TEXTS)), repeat=2))
PAIR_CHANCES = np.array([CHANCES[a] * CHANCES[b] for a, b in PAIRS])
TRUE_GRADIENT = np.einsum("r,rtij,r->ij", CHANCES, SCORES, REWARDS)


def pairs_of_siblings():
    rows = [row for pair in PAIRS for row in pair]
    texts = [TEXTS[row] for row in rows]
    columns = {name: column[:1] * len(rows) for name, column in REFERENCES.items()}
    rollouts = rollouts_of(texts, [PROMPT] * len(rows), REWARDS[rows], 2, columns, [0] * len(rows))
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    logprobs = np.zeros(rollouts.completion_mask.shape)
    for row, text in enumerate(texts):
        for t, token in enumerate(text):
            logprobs[row, t] = np.log(probabilities[t, ALPHABET.index(token)])
    entropies = np.zeros_like(logprobs)
    entropies[:, :LENGTH] = -(probabilities * np.log(probabilities)).sum(1)
    return replace(rollouts, token_logprobs_old=logprobs, token_entropies=entropies), rows


@pytest.mark.parametrize("name", sorted(CRITICS))
def test_the_expected_gradient_is_the_true_one(name):
    """λ = 1: Σ ∇ log π(y_t | s_t) (R − V(s_t)), over both siblings of all pairs."""
    rollouts, rows = pairs_of_siblings()
    values = values_of(name, rollouts)[:, :LENGTH]
    assert np.abs(values).mean() > 0.1
    advantages = REWARDS[rows][:, None] - values
    gradients = np.einsum("rtij,rt->rij", SCORES[rows], advantages)
    per_pair = gradients.reshape(len(PAIRS), 2, LENGTH, 3).mean(1)
    expected = np.einsum("p,pij->ij", PAIR_CHANCES, per_pair)
    np.testing.assert_allclose(expected, TRUE_GRADIENT, atol=1e-7)


def test_a_value_that_knows_its_own_reward_fails_that_test():
    """The check can fail: a baseline of the whole group's mean is none."""
    _, rows = pairs_of_siblings()
    group_mean = REWARDS[rows].reshape(-1, 2).mean(1).repeat(2)
    advantages = REWARDS[rows] - group_mean
    gradients = np.einsum("rtij,r->rij", SCORES[rows], advantages)
    expected = np.einsum("p,pij->ij", PAIR_CHANCES, gradients.reshape(-1, 2, LENGTH, 3).mean(1))
    assert np.abs(expected - TRUE_GRADIENT).max() > 0.01


def test_the_measured_factor_keeps_the_expected_gradient():
    """Batches of two prompts with one completion each, all of them: c from the other prompt."""
    rows = [row for pair in PAIRS for row in pair]
    columns = {name: column[:1] * len(rows) for name, column in REFERENCES.items()}
    rollouts = rollouts_of([TEXTS[row] for row in rows], [PROMPT] * len(rows), columns=columns)
    values = values_of("column", rollouts)
    mask = rollouts.completion_mask
    ids = segment_ids_from_boundaries(find_boundaries(rollouts.token_entropies, mask, 1.0), mask)
    returns = np.where(mask, REWARDS[rows][:, None], 0.0)
    batches = np.arange(len(rows)).reshape(-1, 2)
    factors = np.concatenate(
        [value_coefficients(values[b], returns[b], ids[b], mask[b]) for b in batches]
    )
    assert factors.std() > 0.1
    advantages = REWARDS[rows][:, None] - factors[:, None] * values[:, :LENGTH]
    gradients = np.einsum("rtij,rt->rij", SCORES[rows], advantages)
    expected = np.einsum("p,pij->ij", PAIR_CHANCES, gradients.reshape(-1, 2, LENGTH, 3).mean(1))
    np.testing.assert_allclose(expected, TRUE_GRADIENT, atol=1e-7)


# --- peers ----------------------------------------------------------------------------------------

REWARD = st.sampled_from([0.0, 0.5, 1.0, 1.2, float("nan")])


@given(st.lists(REWARD, min_size=8, max_size=8), st.sampled_from([2, 4, 8]))
def test_siblings_without_oneself(rewards, num_generations):
    means, counts = leave_one_out(np.array(rewards), num_generations)
    for row in range(8):
        group = row // num_generations * num_generations
        others = [rewards[i] for i in range(group, group + num_generations) if i != row]
        others = [reward for reward in others if reward == reward]
        assert counts[row] == len(others)
        assert means[row] == pytest.approx(sum(others) / len(others) if others else 0.0)


@given(st.lists(REWARD, min_size=8, max_size=8), st.sampled_from([2, 4, 8]))
def test_a_right_sibling_is_the_best_one_and_never_oneself(rewards, num_generations):
    rollouts = rollouts_of([f"text {i}" for i in range(8)], None, rewards, num_generations)
    rows = right_siblings(rollouts, 1.0)
    texts = References(["peer"]).find(rollouts).references
    for row in range(8):
        group = row // num_generations * num_generations
        right = [i for i in range(group, group + num_generations) if i != row and rewards[i] >= 1.0]
        best = max(right, key=lambda i: (rewards[i], -i), default=None)
        assert rows[row] == best
        assert texts[row] == (None if best is None else f"text {best}")


# --- where a reference comes from -----------------------------------------------------------------


def test_the_first_origin_that_has_one_is_taken():
    rollouts = rollouts_of(
        ["a 1", "b 1", "c 1", "d 1"],
        rewards=[0, 1, 0, 0],
        num_generations=2,
        columns={"solution": ["2<<1+1=2>>", None, "", " "], "answer": [7, 8, 9, None]},
    )
    found = References(["solution", "peer", "answer"]).find(rollouts)
    texts, origins = found.references, found.reference_origins
    assert texts == ["2", "8", "9", None]
    assert origins == ["solution", "answer", "answer", None]
    found = References(["peer", "answer"]).find(rollouts)
    texts, origins = found.references, found.reference_origins
    assert texts == ["b 1", "8", "9", None]
    assert origins == ["peer", "answer", "answer", None]


def test_a_row_without_a_reference_is_zero_and_marked():
    rollouts = rollouts_of(["1", "1"], columns={"solution": ["1", None]})
    rollouts = References(["solution"]).find(rollouts)
    read = ReferenceInputs(["numbers"]).read(rollouts, cut(rollouts))
    assert read[:, 0, -1].tolist() == [0, 1]
    assert not read[1, :, :-1].any()


def test_memory_gives_the_latest_right_completion_of_earlier_batches():
    memory = PromptMemory(1.0, 4, 8)
    references = References(["memory"], memory=memory)
    first = rollouts_of(["1", "22", "333"], rewards=[1, 0, 1], prompt_index=[0, 0, 1])
    assert references.find(first).references == [None] * 3  # not even a sibling's
    memory.remember(first)
    second = rollouts_of(
        ["5", "6", "é", "too long for it"], rewards=[1, 0, 1, 1], prompt_index=[0, 1, 1, 0]
    )
    assert references.find(second).references == ["1", "333", "333", "1"]
    memory.remember(second)
    assert references.find(second).references == ["5", "é", "é", "5"]
    newer = rollouts_of(["7"], rewards=[0], prompt_index=[4])  # it has the slot of prompt 0
    memory.remember(newer)
    assert references.find(second).references == [None, "é", "é", None]
    assert [column.tolist() for column in memory.record(np.array([4, 0, 1]))] == [
        [1, 0, 3],
        [0, 0, 2],
    ]


def test_history_counts_scored_completions_of_earlier_batches():
    memory = PromptMemory(1.0, 4, 8)
    inputs = HistoryInputs(memory)
    batch = rollouts_of(["a", "b", "c"], rewards=[1, 0, float("nan")], prompt_index=[2, 2, 3])
    assert not inputs.read(batch, cut(batch)).any()
    memory.remember(batch)
    read = inputs.read(batch, cut(batch))
    assert read[0, 0].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert read[2, 0].tolist() == [0, 0]


@pytest.mark.parametrize("name", sorted(CRITICS))
def test_writing_into_the_state_restores_it(name):
    again = critics()[name]
    saved = {key: tensor.clone() for key, tensor in CRITICS[name].state().items()}
    for tensor in again.state().values():
        tensor.zero_()
    for key, tensor in again.state().items():
        tensor.copy_(saved[key])
    rollouts, _ = pairs_of_siblings()
    restored = again.read(rollouts, cut(rollouts))[0].token_values
    np.testing.assert_array_equal(values_of(name, rollouts), restored)
