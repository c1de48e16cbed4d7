"""spo/values/surprisal.py: what the path cost, and the value that reads it."""

import numpy as np
import pytest
import torch
from tiny_runs import StopAfter, make_trainer

from spo.rollouts import load_rollouts
from spo.values.surprisal import MAX_SURPRISAL, NUM_FEATURES, path_regression, surprisal_features


def random_path(rows: int = 4, length: int = 12, seed: int = 0):
    """Log-probs, entropies and a ragged mask, (rows, length) each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, size=(rows, 1))
    mask = np.arange(length) < lengths
    return -rng.exponential(2.0, mask.shape), rng.exponential(1.0, mask.shape), mask


def test_features_know_only_what_came_before():
    """Changing token 5 changes no feature up to token 5 but its own entropy."""
    logprobs, entropies, mask = random_path()
    mask[:] = True
    before = surprisal_features(logprobs, entropies, mask)
    logprobs[:, 5] -= 3.0
    after = surprisal_features(logprobs, entropies, mask)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert not np.allclose(before[:, 6], after[:, 6])


def test_features_are_bounded_and_zero_on_padding():
    logprobs, entropies, mask = random_path()
    features = surprisal_features(1000 * logprobs, 1000 * entropies, mask)
    assert features.shape == (*mask.shape, NUM_FEATURES)
    assert np.abs(features).max() <= MAX_SURPRISAL / 2
    assert not features[~mask].any()


def test_an_even_choice_is_no_slip():
    """A token as unlikely as all its alternatives has surprisal, but none beyond the entropy."""
    surprisal, mask = np.log(8.0), np.ones((1, 2), bool)
    logprobs = np.array([[-surprisal, 0.0]])
    free = surprisal_features(logprobs, np.array([[surprisal, 0.0]]), mask)
    slip = surprisal_features(logprobs, np.array([[0.1, 0.0]]), mask)
    assert free[0, 1, 0] == slip[0, 1, 0] == pytest.approx(surprisal / 2)
    assert free[0, 1, 3] == pytest.approx(0.0)
    assert slip[0, 1, 3] == pytest.approx((surprisal - 0.1) / 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps with surprisal features, their rollouts saved."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, value_model="policy", value_features="surprisal")
    trainer.train()
    return trainer, folder


def test_the_value_is_zero_until_it_is_fitted(run):
    _, folder = run
    first = load_rollouts(folder / "rollouts" / "step-000001.parquet").rollouts
    second = load_rollouts(folder / "rollouts" / "step-000002.parquet").rollouts
    assert not first.token_values[first.completion_mask].any()
    assert second.token_values[second.completion_mask].all()


def test_a_fit_explains_what_the_path_decides(run):
    """Targets made from a feature are found again, on rollouts not fitted to."""
    _, folder = run
    fitted, other = (
        load_rollouts(folder / "rollouts" / f"step-00000{i}.parquet").rollouts for i in (1, 2)
    )

    def targets(rollouts):
        features = surprisal_features(
            rollouts.token_logprobs_old, rollouts.token_entropies, rollouts.completion_mask
        )
        return np.tanh(features[..., 1]) - 0.5 * features[..., 6]

    value, segment_ids = path_regression(), np.zeros(fitted.completion_mask.shape, int)
    for _ in range(30):  # 60 tokens weigh little beside the ridge
        value.predict(fitted, segment_ids)
        value.fit(fitted, targets(fitted), fitted.completion_mask)
    mask = other.completion_mask
    error = (value.predict(other, np.zeros(mask.shape, int)) - targets(other))[mask]
    assert error.var() < 0.1 * targets(other)[mask].var()


def test_it_is_saved_beside_the_critic_and_found_again(run, tmp_path):
    trainer, folder = run
    again = make_trainer(tmp_path, value_model=str(folder / "critic"), value_features="surprisal")
    assert again.critic.regression.fitted.moments.any()
    for name, sums in trainer.critic.regression.state().items():
        assert np.array_equal(sums, again.critic.regression.state()[name])


def test_a_regression_on_other_inputs_begins_anew_with_a_word(run, tmp_path):
    _, folder = run
    other = {"value_model": str(folder / "critic"), "value_sources": ["surprisal", "peers"]}
    with pytest.warns(UserWarning, match=r"reads surprisal \(8\); this run's, .* begins anew"):
        trainer = make_trainer(tmp_path, **other)
    assert not trainer.critic.regression.fitted.moments.any()


def test_alone_it_trains_as_beside_a_network_that_says_nothing(tmp_path):
    """A critic network whose zero head never learns adds 0 to every value."""
    settings = {"value_features": "surprisal", "num_generations": 1, "max_steps": 3}
    alone = make_trainer(tmp_path / "alone", **settings)
    beside = make_trainer(
        tmp_path / "beside", value_model="policy", value_learning_rate=0.0, **settings
    )
    metrics = alone.train().metrics
    beside.train()
    assert alone.critic.network is None
    assert "spo/value_loss" not in metrics
    assert metrics["spo/value_mean"] != 0
    for ours, theirs in zip(alone.policy.trainable, beside.policy.trainable, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for name, sums in alone.critic.regression.state().items():
        assert np.array_equal(sums, beside.critic.regression.state()[name])
    assert "no network; it reads surprisal" in (tmp_path / "alone" / "README.md").read_text()


def test_alone_it_is_fitted_before_the_policy_moves_and_resumes(tmp_path):
    settings = {"value_features": "surprisal", "save_steps": 2, "max_steps": 4}
    trainer = make_trainer(
        tmp_path / "run", value_warmup_steps=2, callbacks=[StopAfter(2)], **settings
    )
    before = [p.detach().clone() for p in trainer.policy.trainable]
    trainer.train()
    assert trainer.critic.regression.fitted.moments.any()
    assert all(map(torch.equal, before, trainer.policy.trainable))
    again = make_trainer(
        tmp_path / "run", value_warmup_steps=2, resume_from_checkpoint="latest", **settings
    )
    again.train()
    assert not all(map(torch.equal, before, again.policy.trainable))


def test_a_step_without_any_gradient_is_none_of_the_optimizers(tmp_path, monkeypatch):
    """torch's loss scaler, there under fp16, refuses it."""
    flags = {"value_features": "surprisal", "num_generations": 1}
    trainer = make_trainer(tmp_path, value_warmup_steps=2, **flags)
    trainer.accelerator.scaler = object()
    monkeypatch.setattr(trainer.optimizer, "step", lambda: pytest.fail("there is no gradient"))
    trainer.train()


def test_by_default_they_stand_beside_a_network_given_in_any_form(tmp_path):
    beside = make_trainer(tmp_path / "beside", value_model="policy")
    assert beside.critic.regression is not None
    module = make_trainer(tmp_path / "module", value_model=beside.critic.network.model)
    assert module.critic.regression is not None
    assert make_trainer(tmp_path / "none").critic.regression is None


def test_without_a_value_network_there_are_no_features_either(tmp_path):
    trainer = make_trainer(tmp_path, value_features="surprisal", use_value_network=False)
    assert trainer.critic.regression is None
    assert not trainer.critic.sources
