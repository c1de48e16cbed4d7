"""Out of memory without gradients: fewer rows at a time, and the same numbers."""

import numpy as np
import pytest
import tiny_runs as runs
import torch

from spo.generation.decoder import PlainDecoder
from spo.networks.batching import Sequences
from spo.networks.network import Network
from spo.scoring import score_rows


@pytest.fixture
def small_memory(monkeypatch):
    """A pass over more rows than `limit` finds no memory, whether it runs the modules or decodes by
    plain functions; `passes` are those it was asked for."""

    class Memory:
        limit, passes = 3, []

    def limited(whole):
        def run(self, batch, *want):
            rows = len(batch.input_ids)
            Memory.passes.append(rows)
            if rows > Memory.limit:
                raise torch.OutOfMemoryError("no memory")
            return whole(self, batch, *want)

        return run

    forward = limited(Network.forward)
    monkeypatch.setattr(Network, "forward", lambda self, batch, want: forward(self, batch, want))
    monkeypatch.setattr(PlainDecoder, "__call__", limited(PlainDecoder.__call__))
    Memory.passes.clear()
    return Memory


def trainer_of(folder, **given):
    return runs.make_trainer(
        folder, max_completion_length=12, per_device_train_batch_size=8, **given
    )


def sampled(trainer, step=1):
    return trainer.generator(trainer.prompts.batch(step), trainer.sampling_params, step)


def test_sampling_goes_on_with_fewer_rows_and_says_the_same(tmp_path, small_memory):
    small_memory.limit = 99
    expected = sampled(trainer_of(tmp_path / "a"))
    trainer = trainer_of(tmp_path / "b")
    small_memory.limit = 3
    with pytest.warns(UserWarning, match="Set per_device_generation_batch_size=2 to start there"):
        found = sampled(trainer)
    assert found.token_ids == expected.token_ids
    for name in ("token_logprobs", "token_entropies"):
        for ours, theirs in zip(getattr(found, name), getattr(expected, name), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
    small_memory.passes.clear()
    sampled(trainer, step=2)
    assert max(small_memory.passes) <= 2  # it remembers


def test_scoring_goes_on_with_fewer_rows_and_says_the_same(tmp_path, small_memory):
    trainer = trainer_of(tmp_path)
    prompts = [[65, 66 + i] for i in range(8)]
    sequences = Sequences(prompts, [[70 + i] * (3 + i % 4) for i in range(8)])
    asked = (trainer.policy, "logprobs_and_entropies", sequences, trainer.args)
    small_memory.limit = 99
    expected = score_rows(*asked)
    small_memory.limit = 3
    with pytest.warns(UserWarning, match="Set max_tokens_per_micro_batch="):
        found = score_rows(*asked)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), atol=2e-6)
    small_memory.passes.clear()
    score_rows(*asked)
    assert max(small_memory.passes) <= 3  # it remembers


def test_one_row_that_does_not_fit_is_an_error(tmp_path, small_memory):
    trainer = trainer_of(tmp_path)
    small_memory.limit = 0
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="Out of"):
        sampled(trainer)
    sequences = Sequences([[65]] * 2, [[66]] * 2)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="Out of"):
        score_rows(trainer.policy, "logprobs_and_entropies", sequences, trainer.args)


def test_a_run_trains_the_same_with_little_memory(tmp_path, small_memory):
    """Sampling, scoring, evaluation and update."""
    small_memory.limit = 99
    given = {"eval_dataset": runs.prompts(5), "beta": 0.1, "adam_epsilon": 1e-3}
    expected = trainer_of(tmp_path / "a", **given)
    expected.train()
    found = trainer_of(tmp_path / "b", **given)
    small_memory.limit = 2
    with pytest.warns(UserWarning, match="Out of memory"):
        found.train()
    assert runs.largest_difference(runs.weights_of(expected), runs.weights_of(found)) < 1e-5
