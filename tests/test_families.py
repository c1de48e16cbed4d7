"""Every family of models: what is scored, sampled, updated and saved is what the model itself does.

Sampling, scoring and update each go their own way through a model: a cache, a padded batch, chunks
of the vocabulary head with a hand-written backward pass. Here all of them meet the plain pass.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_runs as runs
import torch
from families import FAMILIES, FLOAT32, SLOW, tiny_family
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from spo.generation.engine import SamplingParams
from spo.generation.sampler import sample
from spo.networks import build
from spo.networks.batching import MicroBatch
from spo.networks.network import Network, Numerics

PROMPTS = [[70, 71, 72, 73, 74, 75, 76, 77, 78], [90, 91], [90, 91], [60, 61, 62, 63, 64]]
COMPLETIONS = [[33, 34, 35, 36, 37, 38, 39], [50, 51, 52], [53, 54, 55, 56], [80]]
TEMPERATURE = 0.7

every_family = pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
RECURRENT = {"qwen3_next", "lfm2", "falcon_h1", "mamba", "mamba2", "falcon_mamba"}
RECURRENT |= {"bamba", "jamba", "qwen3_5_text", "olmo_hybrid"}
RECURRENT |= {"nemotron_h", "granitemoehybrid", "lfm2_moe"}


def tolerance(family: str) -> dict[str, float]:
    """Absolute and relative."""
    return dict.fromkeys(("atol", "rtol"), 2e-4 if family in FLOAT32 else 1e-5)


def policy(family: str) -> Network:
    numerics = Numerics(temperature=TEMPERATURE, logits_chunk_size=4)
    return build.build_policy(tiny_family(family), numerics=numerics)


def own_logprobs(model) -> list[torch.Tensor]:
    """Row by row from the model's own logits, (T, V) each."""
    rows = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
        logits = logits[len(prompt) - 1 : -1].to(model.dtype)
        rows.append((logits / TEMPERATURE).log_softmax(-1))
    return rows


def every_other(completions, **columns) -> list[float]:
    """Of the two answers to a prompt the second is the better one."""
    return [float(i % 2) for i in range(len(completions))]


@every_family
def test_logprobs_entropies_and_gradients_are_those_of_the_models_own_pass(family):
    network = policy(family)
    expected = own_logprobs(network.model)
    share = family not in RECURRENT
    assert network.can_share_prompts == share
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(len(row), generator=generator) for row in COMPLETIONS]
    pairs = list(zip(expected, COMPLETIONS, weights, strict=True))
    loss = sum((w * log_p[range(len(ids)), ids]).sum() for log_p, ids, w in pairs)
    parameters = dict(network.model.named_parameters())
    own = torch.autograd.grad(loss, parameters.values(), allow_unused=True)

    for share_prompts in {False, share}:
        rows = np.arange(len(PROMPTS))
        batch = MicroBatch.build(rows, PROMPTS, COMPLETIONS, torch.device("cpu"), share_prompts)
        logprobs, entropies = network(batch, "logprobs_and_entropies")
        trained = network(batch, "logprobs")
        for row, (log_p, ids, _) in enumerate(pairs):
            each = log_p[range(len(ids)), ids]
            for ours in (logprobs, trained):
                torch.testing.assert_close(ours[row, : len(ids)], each, **tolerance(family))
            entropy = -(log_p.exp() * log_p).sum(-1)
            torch.testing.assert_close(entropies[row, : len(ids)], entropy, **tolerance(family))
        loss = sum((w * trained[row, : len(w)]).sum() for row, w in enumerate(weights))
        ours = torch.autograd.grad(loss, parameters.values(), allow_unused=True)
        scale = max(float(g.abs().max()) for g in own if g is not None)
        for name, mine, theirs in zip(parameters, ours, own, strict=True):
            assert (mine is None) == (theirs is None), name
            if mine is not None:
                error = float((mine - theirs).abs().max())
                assert error <= tolerance(family)["atol"] * scale, (name, error, scale)


@every_family
def test_greedy_tokens_are_those_of_generate_and_sampled_ones_have_the_scored_logprobs(family):
    """With padded prompts, a cache, and rows that leave the batch."""
    network = policy(family)
    width = max(map(len, PROMPTS))
    padded = torch.tensor([[tiny.PAD] * (width - len(ids)) + ids for ids in PROMPTS])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in PROMPTS])
    with torch.no_grad():
        # one row after the other: generate's own padding is not what is tested
        theirs = [
            network.model.generate(
                row[m.bool()][None],
                attention_mask=m[m.bool()][None],
                max_new_tokens=10,
                do_sample=False,
                eos_token_id=[],
                pad_token_id=tiny.PAD,
            )[0, m.sum() :].tolist()
            for row, m in zip(padded, mask, strict=True)
        ]
    assert len({tuple(row) for row in theirs}) == 3  # equal prompts, equal answers
    end = theirs[1][4]  # of the second and third row, perhaps of others
    stopped = [row[: row.index(end) + 1] if end in row else row for row in theirs]
    params = SamplingParams(max_new_tokens=10, eos_token_ids=(end,), temperature=0.0)
    network.train(False)
    noise = np.random.default_rng(0).random((len(PROMPTS), 10))
    completions = sample(network, PROMPTS, noise, params)
    assert completions.token_ids == stopped

    params = replace(params, temperature=TEMPERATURE)
    completions = sample(network, PROMPTS, noise, params)
    rows = np.arange(len(PROMPTS))
    batch = MicroBatch.build(rows, PROMPTS, completions.token_ids, torch.device("cpu"))
    scored = network(batch, "logprobs_and_entropies")
    recorded = (completions.token_logprobs, completions.token_entropies)
    for recorded_rows, scored_rows in zip(recorded, scored, strict=True):
        for ours, theirs in zip(recorded_rows, scored_rows, strict=True):
            ours = torch.tensor(ours, dtype=theirs.dtype)  # recorded in float32
            torch.testing.assert_close(ours, theirs[: len(ours)], atol=2e-4, rtol=2e-4)


@every_family
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_an_update_moves_the_weights_and_the_saved_model_says_the_same(family, lora, tmp_path):
    model = tiny_family(family, logit_size=1.0).float()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapter = LoraConfig(**runs.LORA) if lora else None
    settings = {"max_steps": 1, "num_generations": 2, "max_completion_length": 4}
    settings |= {"reward_funcs": every_other}
    settings |= {"per_device_train_batch_size": 4, "train_dataset": runs.prompts(2)}
    critic = {"value_model": "policy"} if lora else {}
    trainer = runs.make_trainer(
        tmp_path / "run", model, peft_config=adapter, learning_rate=0.01, **settings, **critic
    )
    weights = runs.weights_of(trainer)
    trainer.train()
    after = runs.weights_of(trainer)
    moved = {name: not np.array_equal(weights[name], after[name]) for name in weights}
    assert any(moved[name] for name in moved if name.startswith("policy"))
    if lora:
        assert any(moved[name] for name in moved if name.startswith("critic"))
        base = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
        assert all(torch.equal(base[name], before[name]) for name in before)

    ids = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        if lora:
            loaded = PeftModel.from_pretrained(
                tiny_family(family, logit_size=1.0).float(), tmp_path / "run"
            )
        else:
            loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
        torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, expected)
