"""Importance sampling between an engine and the trainer: against a slow twin, and against TRL."""

import dataclasses
import math

import numpy as np
import pytest
import reference
import tiny_runs as runs
import torch

from spo.config import SPOConfig
from spo.losses import policy_loss, token_weights
from spo.metrics import rollout_metrics
from spo.mismatch import corrected_advantages, importance_ratios, mismatch_metrics

MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
LENGTHS = [5, 3, 6, 1, 4, 6, 2, 6]


def sampled(seed=0, spread=0.6):
    """Rollouts of 8 completions whose engine differs from the trainer; one number is missing."""
    batch = reference.rollouts(LENGTHS, 4, seed, reference=False)
    noise = np.random.default_rng(seed + 100).normal(0, spread, batch.token_ids.shape)
    sampler = (batch.token_logprobs_old + noise).astype(np.float32)
    sampler[2, 1] = np.nan
    actions = batch.completion_mask.copy()
    actions[0, 2] = False  # a tool's token
    return dataclasses.replace(batch, token_logprobs_sampler=sampler, action_mask=actions)


def slow_ratio(old, sampler, mask, mode, low, high):
    """The same by loops over rows and tokens, in double precision."""
    ratios = np.ones(old.shape)
    for b in range(old.shape[0]):
        logs = [
            float(old[b, t]) - float(sampler[b, t])
            if mask[b, t] and not math.isnan(sampler[b, t])
            else 0.0
            for t in range(old.shape[1])
        ]
        for t in range(old.shape[1]):
            ratio = math.exp(sum(logs) if mode.startswith("sequence") else logs[t])
            outside = (low is not None and ratio < low) or (high is not None and ratio > high)
            if outside and mode.endswith("mask"):
                ratio = 0.0
            elif outside:
                ratio = low if low is not None and ratio < low else high
            ratios[b, t] = ratio
    return ratios


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("low", "high"), [(None, 3.0), (0.7, None), (0.8, 1.3), (None, None)])
@pytest.mark.parametrize("seed", [0, 1])
def test_ratios_are_those_of_the_slow_twin(mode, low, high, seed):
    batch = sampled(seed)
    given = (batch.token_logprobs_old, batch.token_logprobs_sampler, batch.actions, mode, low, high)
    ratios = importance_ratios(*given)
    np.testing.assert_allclose(ratios, slow_ratio(*given), rtol=1e-5)
    if (low, high) == (0.8, 1.3):
        assert (np.abs(ratios - 1) > 0.19).any()  # the bounds are at work


@pytest.mark.parametrize("mode", MODES)
def test_a_hopeless_sequence_is_bounded(mode):
    """e^(600·6) is beyond double precision; the bound holds it."""
    batch = sampled()
    far = dataclasses.replace(batch, token_logprobs_sampler=batch.token_logprobs_old - 600)
    config = SPOConfig(num_generations=4, vllm_importance_sampling_mode=mode)
    advantages = corrected_advantages(np.ones(batch.token_ids.shape, np.float32), far, config)
    bound = 3.0 if mode.endswith("truncate") else 0.0
    assert (advantages[batch.actions] == bound).all()


def test_nothing_is_corrected_where_the_policy_itself_sampled():
    batch = reference.rollouts(LENGTHS, 4, 0)
    advantages = np.ones(batch.token_ids.shape, np.float32)
    assert corrected_advantages(advantages, batch, SPOConfig(num_generations=4)) is advantages
    assert mismatch_metrics(batch, SPOConfig(num_generations=4)) == {}


def test_the_correction_can_be_switched_off():
    config = SPOConfig(num_generations=4, vllm_importance_sampling_correction=False)
    advantages = np.ones((8, 6), np.float32)
    assert corrected_advantages(advantages, sampled(), config) is advantages
    names = set(mismatch_metrics(sampled(), config))
    assert names == {f"sampling/sampling_logp_difference/{what}" for what in ("mean", "max")}


def test_a_biased_sampler_is_made_up_for():
    """Two tokens with p = 0.5, one sampled three times as often: corrected, both weigh alike."""
    old = np.log(np.full((4, 1), 0.5))
    sampler = np.log(np.array([[0.75], [0.75], [0.75], [0.25]]))
    ratios = importance_ratios(old, sampler, np.ones((4, 1), bool), "token_truncate", None, 3.0)
    assert ratios[:3].sum() == pytest.approx(ratios[3].sum())


# --- TRL --------------------------------------------------------------------------------------


def trl_trainer(folder, mode, clips, **settings):
    """TRL's trainer on a tiny policy, as if vLLM had sampled the rows of `sampled`."""
    grpo = pytest.importorskip("trl")
    config = grpo.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        num_generations=4,
        per_device_train_batch_size=8,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=clips[0],
        vllm_importance_sampling_clip_max=clips[1],
        use_bias_correction_kl=False,
        **settings,
    )
    trainer = grpo.GRPOTrainer(
        runs.policy(),
        reward_funcs=lambda completion_ids, **_: [float(ids[0] % 5) for ids in completion_ids],
        args=config,
        train_dataset=runs.prompts(),
        processing_class=runs.byte_tokenizer(),
    )
    trainer.use_vllm = True
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def generated(batch, nudge):
    """What TRL's `_generate` returns for these rows; the engine is off by `nudge`."""
    ids = batch.ragged_token_ids
    masks = [row[:n].astype(int).tolist() for row, n in zip(batch.actions, LENGTHS, strict=True)]
    texts = ["text"] * len(ids)
    return [[65, 66, 67]] * len(ids), ids, masks, texts, nudge, {}, None, None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clips", [(None, 3.0), (0.8, 1.2)])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo", "sapo"])
def test_loss_and_gradient_are_trls(tmp_path, mode, clips, loss_type):
    """The same tokens, log-probs and rewards through TRL's own code, with a KL penalty beside."""
    trainer = trl_trainer(tmp_path, mode, clips, loss_type=loss_type)
    batch = sampled()
    shape = batch.token_ids.shape
    first = torch.randn(shape, generator=torch.Generator().manual_seed(0)) - 3  # of the engine
    lists = [row[:n].tolist() for row, n in zip(first, LENGTHS, strict=True)]
    lists[2][1] = None  # vLLM has no number for it
    trainer._generate = lambda prompts: generated(batch, lists)
    spread = 0.2 if mode.startswith("sequence") else 0.6
    old = first + spread * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    current = (old + 0.1).requires_grad_()
    answers = iter([old, current])
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (next(answers), old, None)
    output = trainer._generate_and_score_completions([{"prompt": "sum: 1 + 1"}] * 8)
    trainer.beta, output["ref_per_token_logps"] = 0.04, old - 0.3
    theirs = trainer._compute_loss(trainer.model, output)
    (their_gradient,) = torch.autograd.grad(theirs, current)

    sampler = first.numpy().copy()
    sampler[2, 1] = np.nan
    ours_batch = dataclasses.replace(
        batch, token_logprobs_old=old.numpy(), token_logprobs_sampler=sampler
    )
    config = SPOConfig(
        num_generations=4,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=clips[0],
        vllm_importance_sampling_clip_max=clips[1],
    )
    advantages = output["advantages"][:, None].expand(shape).numpy().astype(np.float32)
    weights = token_weights(batch.actions, loss_type, 6).astype(np.float32)
    ours, _ = policy_loss(
        current,
        old,
        torch.from_numpy(corrected_advantages(advantages, ours_batch, config)),
        torch.from_numpy(weights),
        torch.zeros(shape, dtype=torch.int64),
        epsilon=0.2,
        token_logprobs_ref=old - 0.3,
        beta=0.04,
        loss_type=loss_type,
    )
    (our_gradient,) = torch.autograd.grad(ours, current)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-6)
    ours_logged = mismatch_metrics(ours_batch, config)
    theirs_logged = {k: v[0] for k, v in trainer._metrics["train"].items() if k in ours_logged}
    assert len(theirs_logged) == 5
    assert ours_logged == pytest.approx(theirs_logged, abs=1e-6)
    assert set(ours_logged) <= set(rollout_metrics_of(ours_batch, config))


def rollout_metrics_of(batch, config):
    from spo.advantages import assign_credit

    batch = dataclasses.replace(batch, token_values=None)
    return rollout_metrics(batch, assign_credit(batch, config), config)
