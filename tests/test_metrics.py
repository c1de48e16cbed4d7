"""spo.metrics: every number by hand or against a plain loop."""

import dataclasses

import numpy as np
import pytest
import reference

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.metrics import explained_variance, rollout_metrics, zero_spread_fraction

LENGTHS = [5, 1, 0, 7, 3, 4]


def metrics_of(batch, **settings):
    args = SPOConfig(**{"num_generations": batch.num_generations} | settings)
    credit = assign_credit(batch, args)
    return rollout_metrics(batch, credit, args), credit


# --- explained variance ---------------------------------------------------------------------------


def test_explained_variance_by_hand():
    """Returns 0, 1, 2, 3: variance 1.25."""
    returns, mask = np.array([0.0, 1.0, 2.0, 3.0]), np.ones(4, bool)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(np.full(4, 7.0), returns, mask) == 0.0
    assert explained_variance(returns + 7.0, returns, mask) == 1.0  # a constant error is free
    assert explained_variance(-returns, returns, mask) == 1 - 4.0
    assert explained_variance(returns / 2, returns, mask) == 0.75


def test_explained_variance_reads_only_the_mask():
    returns, values = np.array([0.0, 1.0, 5.0, np.nan]), np.array([0.5, 0.5, np.inf, 9.0])
    assert explained_variance(values, returns, np.array([True, True, False, False])) == 0.0


@pytest.mark.parametrize("returns", [[1.0, 1.0], [1.0]])
def test_returns_that_agree_explain_nothing(returns):
    returns = np.array(returns)
    assert explained_variance(returns * 0.5, returns, np.ones(len(returns), bool)) is None


# --- rollout metrics ------------------------------------------------------------------------------


def test_every_metric_against_a_plain_loop():
    batch = reference.rollouts(LENGTHS, 2, truncated=[3], unscorable=[0])
    metrics, credit = metrics_of(batch, entropy_percentile=0.3)
    rewards = [float(r) for r in batch.completion_rewards[1:]]
    mean = sum(rewards) / 5
    std = (sum((r - mean) ** 2 for r in rewards) / 4) ** 0.5
    tokens = [(b, t) for b, n in enumerate(LENGTHS) for t in range(n)]
    scored = [(b, t) for b, t in tokens if b != 0]

    def average(array, over):
        return sum(float(array[b, t]) for b, t in over) / len(over)

    k1 = batch.token_logprobs_old - batch.token_logprobs_ref
    expected = {
        "reward": mean,
        "reward_std": std,
        "frac_reward_zero_std": 1 / 3,  # row 1's group has but one scorable completion
        "entropy": average(batch.token_entropies, tokens),
        "completions/mean_length": 20 / 6,
        "completions/min_length": 0,
        "completions/max_length": 7,
        "completions/clipped_ratio": 1 / 6,
        "spo/mean_segments_per_sequence": sum(
            len(reference.segments_of_row(row)) for row in credit.segment_ids
        )
        / 6,
        "spo/advantage_abs_mean": average(abs(credit.token_advantages), scored),
        "spo/entropy_threshold": credit.entropy_threshold,
        "kl": average(np.exp(-k1) - 1 + k1, tokens),
        "spo/value_mean": average(batch.token_values, scored),
        "spo/return_mean": average(credit.token_returns, scored),
        "spo/explained_variance": explained_variance(
            batch.token_values, credit.token_returns, batch.loss_mask(False)
        ),
        "rewards/accuracy/mean": mean,
        "rewards/accuracy/std": std,
        "rewards/format/mean": 0.0,
        "rewards/format/std": 0.0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_metrics_of_parts_that_do_not_exist_are_absent():
    batch = reference.rollouts([3, 2], 2, critic=False, reference=False)
    metrics, _ = metrics_of(batch, entropy_percentile=0.0)
    absent = {"kl", "spo/value_mean", "spo/return_mean", "spo/explained_variance"}
    assert not (absent | {"spo/entropy_threshold"}) & metrics.keys()
    assert metrics["spo/mean_segments_per_sequence"] == 1.0


def test_masked_truncated_rows_leave_the_statistics_of_the_losses():
    batch = reference.rollouts([3, 2], 2, truncated=[1])
    metrics, credit = metrics_of(batch, mask_truncated_completions=True)
    assert metrics["spo/value_mean"] == pytest.approx(batch.token_values[0].mean())
    assert metrics["completions/clipped_ratio"] == 0.5
    assert metrics["reward"] == pytest.approx(batch.completion_rewards.mean())
    assert not credit.token_advantages[1].any()


def test_a_batch_without_any_scorable_row_has_finite_metrics():
    batch = reference.rollouts([3, 2], 2, unscorable=[0, 1])
    metrics, _ = metrics_of(batch)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["reward"] == 0.0


def test_metrics_do_not_read_padding():
    clean = metrics_of(reference.rollouts(LENGTHS, 2))[0]
    dirty = metrics_of(reference.rollouts(LENGTHS, 2, padding=np.nan, extra_columns=2))[0]
    assert clean == dirty


@pytest.mark.parametrize(
    ("rewards", "fraction"),
    [
        ([1, 1, 0, 1], 0.5),
        ([0, 1, 1, 0], 0.0),
        ([2, 2, 3, 3], 1.0),
        ([np.nan, 1, 0, 1], 0.5),
        ([np.nan, np.nan, 0, 1], 0.5),
    ],
)
def test_groups_without_spread_are_counted(rewards, fraction):
    batch = reference.rollouts([1, 1, 1, 1], 2)
    batch = dataclasses.replace(batch, completion_rewards=np.array(rewards, np.float32))
    assert zero_spread_fraction(batch) == fraction
