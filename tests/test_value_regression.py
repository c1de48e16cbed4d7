"""spo/values/regression.py and coefficient.py: fits, factors and λ against sums done by hand."""

import math

import numpy as np
import pytest
from critic_rollouts import rollouts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from spo.advantages import segment_gae
from spo.segments import at_segment_starts
from spo.values.coefficient import (
    LAMBDAS,
    AutoLambda,
    credit_correlation,
    value_coefficients,
)
from spo.values.regression import Regression, Ridge, num_products, products
from spo.values.surprisal import SurprisalInputs

# --- the regression -------------------------------------------------------------------------------


def naive_fit(batches, ridge, memory):
    """Weights of all batches, each product and sum written out, and the range of the targets."""
    n = batches[0][0].shape[1]
    size = 1 + n + n * (n + 1) // 2
    covariance, moments = np.zeros((size, size)), np.zeros(size)
    for age, (inputs, targets, _) in enumerate(reversed(batches)):
        later = sum(c for _, _, c in batches[len(batches) - age :])
        for row, target in zip(inputs, targets, strict=True):
            x = [1.0, *row, *(row[i] * row[j] for i in range(n) for j in range(i, n))]
            covariance += np.outer(x, x) * math.exp(-later / memory)
            moments += np.array(x) * target * math.exp(-later / memory)
    diagonal = [ridge[0]] + [ridge[1]] * n + [ridge[2]] * (size - 1 - n)
    return np.linalg.inv(covariance + np.diag(diagonal)) @ moments


@pytest.mark.parametrize("num_inputs", [1, 3])
def test_it_equals_the_sums_written_out(num_inputs):
    rng = np.random.default_rng(num_inputs)
    batches = [
        (rng.normal(size=(tokens, num_inputs)), rng.normal(size=tokens), count)
        for tokens, count in ((20, 5), (0, 3), (30, 8))
    ]
    ridge = Ridge(num_inputs, (1.0, 3.0, 9.0), memory=10.0, clip=False)
    for batch in batches:
        ridge.fit(*batch)
    inputs = rng.normal(size=(7, num_inputs))
    expected = products(inputs) @ naive_fit(batches, (1.0, 3.0, 9.0), 10.0)
    np.testing.assert_allclose(ridge.predict(inputs), expected, rtol=1e-9)
    assert products(inputs).shape[1] == num_products(num_inputs)


def test_many_tokens_are_taken_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(50, 2)), rng.normal(size=50)
    whole, in_blocks = Ridge(2), Ridge(2)
    whole.fit(inputs, targets, 4)
    monkeypatch.setattr("spo.values.regression.BLOCK", 7)
    in_blocks.fit(inputs, targets, 4)
    np.testing.assert_allclose(in_blocks.covariance, whole.covariance)
    np.testing.assert_allclose(in_blocks.moments, whole.moments)


def test_predictions_stay_within_what_was_seen():
    inputs, targets = np.array([[0.0], [1.0]] * 50), np.array([-1.0, 2.0] * 50)
    far = np.array([[-100.0], [100.0], [0.5]])
    held, free = (Ridge(1, (0.1, 0.1, 0.1), clip=clip) for clip in (True, False))
    for ridge in (held, free):
        assert not ridge.predict(far).any()  # nothing fitted
        ridge.fit(inputs, targets, 100)
    assert held.predict(far).max() == 2
    assert free.predict(far).max() > 100
    assert held.predict(far)[2] == free.predict(far)[2]


def test_unscorable_rows_are_not_fitted():
    source = Regression([SurprisalInputs()])
    rollouts = rollouts_of(["123", "456"], rewards=[1, float("nan")])
    returns = np.where(rollouts.completion_mask, rollouts.completion_rewards[:, None], 0.0)
    source.predict(rollouts, np.zeros(rollouts.completion_mask.shape, int))
    source.fit(rollouts, returns, rollouts.loss_mask(False))
    assert np.isfinite(
        source.predict(rollouts, np.zeros(rollouts.completion_mask.shape, int))
    ).all()


# --- the factor -----------------------------------------------------------------------------------


def one_segment(values, returns):
    """A token per completion."""
    values, returns = np.asarray(values)[:, None], np.asarray(returns)[:, None]
    return values, returns, np.zeros(values.shape, int), np.ones(values.shape, bool)


def squared(values, returns, factors):
    return np.square(np.asarray(returns) - factors * np.asarray(values)).mean()


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2]))
def test_a_factor_comes_from_the_other_prompts(seed, num_generations):
    rng = np.random.default_rng(seed)
    values, returns = rng.normal(0.5, 1, 8), rng.normal(0.5, 1, 8)
    before = value_coefficients(*one_segment(values, returns), num_generations)
    for row in range(8):
        group = slice(row // num_generations * num_generations, None)
        own = np.arange(8)[group][:num_generations]
        s, q = [
            [sum(x[i] * values[i] for i in range(g, g + num_generations))
             for g in range(0, 8, num_generations) if g != own[0]]
            for x in (returns, values)
        ]  # fmt: skip
        c = sum(s) / sum(q)
        variance = sum((a - c * b) ** 2 for a, b in zip(s, q, strict=True)) / sum(q) ** 2
        expected = 0.0 if c < 0 else min(max(c - variance / c, 0.0), 2.0)
        assert before[row] == pytest.approx(expected)
    changed_values, changed_returns = values.copy(), returns.copy()
    changed_values[:num_generations] += 1
    changed_returns[:num_generations] -= 1
    after = value_coefficients(*one_segment(changed_values, changed_returns), num_generations)
    np.testing.assert_array_equal(before[:num_generations], after[:num_generations])


@pytest.mark.parametrize("kind", ["noise", "opposite", "ten times too much"])
def test_a_bad_critic_does_no_harm(kind):
    """Rewards 0 and 1 of 64 completions, 400 batches: Σ (R − c V)² beside Σ R²."""
    rng = np.random.default_rng(1)
    with_factor, with_values, with_none = 0.0, 0.0, 0.0
    for _ in range(400):
        returns = (rng.random(64) < 0.3).astype(float)
        values = {
            "noise": rng.normal(size=64),
            "opposite": -returns + rng.normal(0, 0.3, 64),
            "ten times too much": 10 * (0.3 + 0.2 * (returns - 0.3)),
        }[kind]
        factors = value_coefficients(*one_segment(values, returns))
        with_factor += squared(values, returns, factors)
        with_values += squared(values, returns, 1.0)
        with_none += squared(values, returns, 0.0)
    assert with_factor < 1.01 * with_none < with_values


def test_a_right_critic_keeps_its_values():
    rng = np.random.default_rng(2)
    values = rng.uniform(0.1, 0.9, 256)
    returns = (rng.random(256) < values).astype(float)
    factors = value_coefficients(*one_segment(values, returns))
    assert factors == pytest.approx(1.0, abs=0.1)


def test_alone_a_prompt_keeps_its_values():
    assert value_coefficients(*one_segment([0.5, 0.2], [1.0, 0.0]), 2).tolist() == [1, 1]


def test_the_value_of_a_segment_is_that_before_its_first_token():
    values, ids = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[0, 0, 1, -1]])
    assert at_segment_starts(values, ids)[0, :3].tolist() == [1, 1, 3]


# --- λ --------------------------------------------------------------------------------------------


def random_walks(rows: int, segments: int, explained: float, seed: int):
    """Returns as sums of what each segment did, and a critic that sees a share of each part."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(0, math.sqrt(explained), (rows, segments))
    unseen = rng.normal(0, math.sqrt(1 - explained), (rows, segments))
    values = np.concatenate([np.zeros((rows, 1)), np.cumsum(seen, 1)[:, :-1]], axis=1)
    return values, (seen + unseen).sum(1), seen + unseen


@pytest.mark.parametrize("explained", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95])
def test_the_model_of_credit_against_simulated_completions(explained, lam):
    values, rewards, exact = random_walks(4000, 8, explained, seed=0)
    token_rewards = np.zeros_like(values)
    token_rewards[:, -1] = rewards
    ids = np.broadcast_to(np.arange(8), values.shape)
    ours = segment_gae(token_rewards, values, ids, gamma=1.0, lam=lam)
    found = np.corrcoef(ours.ravel(), exact.ravel())[0, 1]
    assert credit_correlation(lam, explained, 8) == pytest.approx(found, abs=0.02)


@pytest.mark.parametrize("explained", [0.0, 0.2, 0.5, 1.0])
def test_lambda_follows_what_the_critic_explains(explained):
    auto = AutoLambda(start=0.9, memory=1e9)
    assert auto.lam == 0.9
    for seed in range(4):
        values, rewards, _ = random_walks(1000, 8, explained, seed)
        returns = np.broadcast_to(rewards[:, None], values.shape)
        ids = np.broadcast_to(np.arange(8), values.shape)
        auto.observe(values, returns, ids, np.ones(values.shape, bool))
    assert auto.explained == pytest.approx(explained, abs=0.05)
    found = {lam: credit_correlation(lam, explained, 8) for lam in LAMBDAS}
    assert found[auto.lam] > 0.95 * max(found.values())
    assert {0.0: auto.lam > 0.9, 1.0: auto.lam < 0.4}.get(explained, True)


def test_prompts_known_to_be_hard_are_no_credit():
    """A critic that knows each completion's mean and nothing of its course: λ stays high."""
    _, rewards, _ = random_walks(500, 8, 0.0, 0)
    values = np.broadcast_to(
        (rewards + np.random.default_rng(1).normal(size=500))[:, None], (500, 8)
    )
    returns = np.broadcast_to(rewards[:, None], values.shape)
    auto = AutoLambda()
    ids = np.broadcast_to(np.arange(8), values.shape)
    auto.observe(values, returns, ids, np.ones(values.shape, bool))
    assert auto.explained == 0
    assert auto.lam > 0.9


def test_lambda_leaves_out_what_is_masked_and_resumes():
    values, rewards, _ = random_walks(50, 8, 0.7, 0)
    returns = np.broadcast_to(rewards[:, None], values.shape).copy()
    ids = np.broadcast_to(np.arange(8), values.shape)
    mask = np.ones(values.shape, bool)
    auto, masked = AutoLambda(), AutoLambda()
    auto.observe(values[:40], returns[:40], ids[:40], mask[:40])
    mask[40:], returns[40:] = False, np.nan
    masked.observe(values, returns, ids, mask)
    assert masked.explained == pytest.approx(auto.explained)
    again = AutoLambda()
    again.state()["sums"][...] = auto.state()["sums"]
    assert again.lam == auto.lam
