"""Runs whose critic reads more than the path: they learn, resume, and tell the policy nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_runs as runs
from datasets import Dataset
from peft import LoraConfig
from run_elsewhere import with_references
from tiny import byte_tokenizer

from spo import SPOConfig
from spo.advantages import assign_credit
from spo.rollouts import load_rollouts
from spo.values import coefficient

WORDS = {"value_reference_items": ["symbols", "words"]}
COLUMN = {"value_reference": ["solution"], **WORDS}
CRITICS = {
    "column": COLUMN,
    "peer": {"value_reference": ["peer"], "value_right_reward": 0.5, **WORDS},
    "memory": {"value_reference": ["memory"], "value_right_reward": 0.5, **WORDS},
    "rest": {"value_sources": ["reference", "rest"], **COLUMN},
    "hint": {"value_sources": ["hint"], **COLUMN},
    "peers": {"value_sources": ["peers"]},
    "history": {"value_sources": ["history"], "value_right_reward": 0.5},
    "monte_carlo": {"value_sources": ["monte_carlo"], "value_continuations": 2},
    "some_continued": {"value_sources": ["monte_carlo"], "value_continued_segments": 1},
    "auto": {"lam": "auto", "value_coefficient": "auto", **COLUMN},
}


def with_network(**settings):
    return {"value_model": "policy", "peft_config": LoraConfig(**runs.LORA), **settings}


WITH_NETWORK = {
    "network": with_network(**COLUMN),
    "network_reads": with_network(value_prompt="reference", **COLUMN),
    "reads_alone": with_network(
        value_prompt="reference", value_reference=["solution"], value_sources=[]
    ),
}


def build(folder, **settings):
    defaults = {"train_dataset": with_references(), "max_steps": 4, "save_steps": 2}
    return runs.make_trainer(folder, **defaults | settings)


@pytest.mark.parametrize("name", [*CRITICS, *WITH_NETWORK])
def test_it_learns_and_a_stopped_run_continues_exactly(name, tmp_path):
    settings = (CRITICS | WITH_NETWORK)[name]
    whole = build(tmp_path / "whole", **settings)
    before = runs.weights_of(whole)
    whole.train()
    build(tmp_path / "stopped", callbacks=[runs.StopAfter(3)], **settings).train()
    resumed = build(tmp_path / "stopped", resume_from_checkpoint="latest", **settings)
    resumed.train()
    assert runs.same_bits(runs.weights_of(whole), runs.weights_of(resumed))
    assert runs.metrics_of(tmp_path / "whole") == runs.metrics_of(tmp_path / "stopped")
    for key, held in whole.critic.state().items():
        assert held.equal(resumed.critic.state()[key]), key
    assert not runs.same_bits(before, runs.weights_of(whole))
    last = runs.rollouts_of(tmp_path / "whole")[-1].rollouts
    assert np.std(last.token_values[last.completion_mask]) > 0


def told_to_rewards(folder, **settings) -> list[str]:
    """Two steps and evaluations at learning rate 0 -> what the reward functions were given."""
    told = []

    def low_bytes(completion_ids, **columns):
        shown = {k: v for k, v in columns.items() if isinstance(v, list)}
        told.append(json.dumps([completion_ids, shown], default=str))
        return runs.low_bytes(completion_ids)

    same = {"learning_rate": 0.0, "eval_dataset": with_references(3), "max_steps": 2}
    build(folder, reward_funcs=low_bytes, **same, **settings).train()
    return told


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The folder of a run without a critic, and what its rewards were given."""
    folder = tmp_path_factory.mktemp("without")
    return folder, told_to_rewards(folder)


@pytest.mark.parametrize("name", [*CRITICS, "network"])
def test_the_policy_never_learns_of_the_reference(name, without, tmp_path):
    """At learning rate 0: prompts, completions, log-probs, evaluations and what the reward
    functions are given are those of a run without a critic."""
    settings = (CRITICS | WITH_NETWORK)[name]
    told = told_to_rewards(tmp_path / "with", **settings)
    folder, told_without = without
    if "peft_config" in settings:
        folder = tmp_path / "without"
        told_without = told_to_rewards(folder, peft_config=settings["peft_config"])
    if "monte_carlo" not in settings.get("value_sources", ()):  # it has its own calls
        assert told == told_without
    pairs = zip(runs.rollouts_of(tmp_path / "with"), runs.rollouts_of(folder), strict=True)
    for ours, theirs in pairs:
        for column in ("prompts", "completions", "prompt_ids", "ragged_token_ids"):
            assert getattr(ours.rollouts, column) == getattr(theirs.rollouts, column)
        logprobs = [saved.rollouts.token_logprobs_old for saved in (ours, theirs)]
        np.testing.assert_array_equal(*logprobs)
    evaluations = [
        [{k: v for k, v in line.items() if k.startswith("eval/")} for line in runs.metrics_of(run)]
        for run in (tmp_path / "with", folder)
    ]
    assert evaluations[0] == evaluations[1]
    assert any("eval/reward" in line for line in evaluations[0])


def test_lambda_and_the_factor_are_logged_and_the_file_knows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(coefficient, "LAMBDAS", (0.3,))  # what a right critic would come to
    build(tmp_path / "run", **CRITICS["auto"]).train()
    steps = [line for line in runs.metrics_of(tmp_path / "run") if "spo/lam" in line]
    assert [line["spo/lam"] for line in steps] == [0.95, 0.3, 0.3, 0.3]
    assert all(0 <= line["spo/value_coefficient"] <= 2 for line in steps)
    paths = sorted((tmp_path / "run" / "rollouts").glob("step-*.parquet"))
    for path, line in zip(paths, steps, strict=True):
        saved = load_rollouts(path)
        config = SPOConfig(**saved.config)
        assert config.lam == line["spo/lam"]
        again = assign_credit(saved.rollouts, config, saved.credit.segment_ids)
        np.testing.assert_allclose(again.token_advantages, saved.credit.token_advantages, atol=1e-5)


def test_in_a_chat_the_reference_begins_the_last_message(tmp_path):
    """The critic network's prompt holds it once, inside the user's turn."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}<assistant>"
    )
    chats = [[{"role": "user", "content": f"sum {i}"}] for i in range(8)]
    dataset = Dataset.from_dict({"prompt": chats, "solution": [f"it is {i}" for i in range(8)]})
    trainer = build(
        tmp_path, train_dataset=dataset, processing_class=tokenizer, max_steps=1, **CRITICS["hint"]
    )
    seen = []
    hint = trainer.critic.sources[0].inputs[0]
    tokenize = hint.tokenize
    hint.tokenize = lambda rollouts: seen.append(tokenize(rollouts)) or seen[-1]
    trainer.train()
    texts = [tokenizer.decode(ids) for ids in seen[0]]
    for text in texts:
        number = text.split("it is ")[1].split("\n")[0]
        assert text == f"<user>Reference solution:\nit is {number}\n\nsum {number}</><assistant>"
    assert len(set(texts)) == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"value_reference": ["soluton"]}, r"no column 'soluton' \(did you mean 'solution'\?\)"),
        ({"value_reference": ["empty"]}, "no row has anything in empty"),
        ({"value_reference": ["peer"], "num_generations": 1}, "num_generations=1: there are none"),
        ({"value_sources": ["peers"], "num_generations": 1}, "num_generations=1: there are none"),
        ({"value_sources": ["hint"]}, "value_sources=hint needs value_reference"),
        ({"value_prompt": "reference"}, "value_prompt=reference needs value_reference"),
        ({"value_prompt": "reference", **COLUMN}, "needs a critic network: value_model_path"),
        ({"value_reference_prompt": "z", **COLUMN}, r"has no \{reference\} in it"),
        (
            {"value_sources": ["surprisal"], "value_features": "surprisal"},
            "set value_sources alone",
        ),
        (
            {"value_sources": ["hint"], "value_reference": ["long"]},
            "longest reference has 600 tokens",
        ),
        ({"value_sources": ["rest"], "value_reference": ["long"]}, "reference has 600 tokens"),
        ({"save_columns": ["anser"]}, r"no column 'anser' \(did you mean 'answer'\?\)"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(settings, sentence, tmp_path):
    rows = {"long": ["1" * 600] * 8, "empty": [" "] * 8, "answer": [1] * 8}
    dataset = with_references()
    for name, column in rows.items():
        dataset = dataset.add_column(name, column)
    with pytest.raises(ValueError, match=sentence):
        build(tmp_path / "run", train_dataset=dataset, **settings)
    assert not Path(tmp_path / "run" / "rollouts").exists()


def test_continuations_cannot_go_through_a_rollout_func(tmp_path):
    with pytest.raises(ValueError, match="which neither a rollout_func"):
        build(tmp_path, rollout_func=lambda prompts, trainer: {}, **CRITICS["monte_carlo"])


def test_without_a_reference_in_sight_the_run_goes_on(tmp_path):
    """Nobody is right, so no row has one."""
    settings = {"value_reference": ["peer", "memory"], "value_right_reward": 9.0}
    trainer = build(tmp_path, value_sources=["reference", "hint", "rest"], **settings)
    trainer.train()
    assert runs.rollouts_of(tmp_path)[-1].rollouts.token_values is not None
