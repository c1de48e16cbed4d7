"""The seams: a scripted generator, tool tokens, segmentation rules, steps with nothing to learn."""

import dataclasses

import numpy as np
import pytest
import reference
import tiny_runs as runs
from peft import LoraConfig
from tiny import EOS

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.rollouts import Completions, load_rollouts
from spo.segments import segment, segment_starts


class ScriptedGenerator:
    """Says the same tokens to every prompt, and remembers what it was asked and handed."""

    def __init__(self, token_ids, action_mask=None):
        self.token_ids, self.action_mask = token_ids, action_mask
        self.steps, self.loaded = [], 0

    def __call__(self, prompts, params, step):
        self.steps.append((step, len(prompts), params.temperature))
        ids = [[*self.token_ids, int(row) % 9 + 65, EOS] for row in prompts.rows]
        mask = self.action_mask and [[*self.action_mask, True, True] for _ in ids]
        return Completions(prompts.prompt_ids, ids, [False] * len(ids), action_mask=mask)

    def load(self, policy):
        self.loaded += 1


def last_byte(completion_ids, **columns):
    return [float(ids[-2] % 3) for ids in completion_ids]


def scripted(folder, action_mask=None, **settings):
    trainer = runs.make_trainer(
        folder, reward_funcs=last_byte, value_model="policy", max_steps=2, **settings
    )
    trainer.generator = ScriptedGenerator([66, 67, 68, 69], action_mask)
    return trainer


# --- generators -------------------------------------------------------------------------------


def test_training_and_evaluation_take_what_the_generator_says(tmp_path):
    trainer = scripted(tmp_path / "run", eval_dataset=runs.prompts(3))
    before = runs.weights_of(trainer)
    trainer.train()
    steps = [step for step, _, _ in trainer.generator.steps]
    assert steps == [2**31, 1, 2, 2**31]  # evaluated before and after
    assert [temperature for _, _, temperature in trainer.generator.steps] == [0, 1, 1, 0]
    assert trainer.generator.loaded == 4  # every time before it is asked
    for saved in runs.rollouts_of(tmp_path / "run"):
        assert {text[:4] for text in saved.rollouts.completions} == {"BCDE"}
    assert not runs.same_bits(before, runs.weights_of(trainer))


def test_a_rollout_func_also_answers_in_evaluation(tmp_path):
    asked = []

    def complete(prompts, trainer):
        asked.append(len(prompts))
        ids = [trainer.processing_class(text)["input_ids"] for text in prompts]
        return {"prompt_ids": ids, "completion_ids": [[65 + len(p) % 7, EOS] for p in ids]}

    trainer = runs.make_trainer(
        tmp_path / "run",
        rollout_func=complete,
        eval_dataset=runs.prompts(3),
        reward_funcs=lambda completion_ids, **_: [float(ids[0]) for ids in completion_ids],
    )
    trainer.train()
    assert asked == [3, 8, 8, 3]


# --- tool and environment tokens ------------------------------------------------------------------


def test_tool_tokens_are_read_but_not_trained_on(tmp_path):
    """Two tokens of a tool in the middle: the loss, the ranking and the credit leave them out."""
    mask = [True, False, False, True]
    trainer = scripted(tmp_path / "run", mask, entropy_percentile=0.0, normalize_advantages=False)
    trainer.train()
    for saved in runs.rollouts_of(tmp_path / "run"):
        whole = [*mask, True, True]
        assert (saved.rollouts.action_mask == whole).all()
        assert (saved.credit.segment_ids == [0, 0, 0, 1, 1, 1]).all()  # the tool ends a segment
        advantages = saved.credit.token_advantages
        assert not advantages[:, 1:3].any()
        assert np.count_nonzero(advantages[:, [0, 3, 4, 5]]) > 10


def with_tools(seed=0):
    """Rollouts with a tool in every row, and what the same rows are without its tokens."""
    batch = reference.rollouts([6, 6, 6, 6], 2, seed, reference=False)
    actions = batch.completion_mask.copy()
    actions[:, 2:4] = False
    return dataclasses.replace(batch, action_mask=actions), actions


@pytest.mark.parametrize("rule", ["entropy", "probability", "fixed", "turn"])
@pytest.mark.parametrize("critic", [True, False])
def test_numbers_at_tool_tokens_change_no_credit(rule, critic):
    batch, actions = with_tools()
    if not critic:
        batch = dataclasses.replace(batch, token_values=None)
    config = SPOConfig(
        num_generations=2, segmentation=rule, segment_length=2, entropy_percentile=0.4, lam=0.7
    )
    credit = assign_credit(batch, config)
    noise = np.where(actions, 0, 7).astype(np.float32)
    noisy = dataclasses.replace(
        batch,
        token_entropies=batch.token_entropies + noise,
        token_logprobs_old=batch.token_logprobs_old - noise,
    )
    changed = assign_credit(noisy, config)
    assert np.array_equal(credit.segment_ids, changed.segment_ids)
    assert np.array_equal(credit.token_advantages, changed.token_advantages)
    assert not credit.token_advantages[~actions].any()
    assert segment_starts(credit.segment_ids)[:, 4].all()  # the policy speaks again


def test_a_reward_on_a_tools_last_token_is_not_lost():
    """The scalar reward stands on the last token, whoever wrote it."""
    batch, actions = with_tools()
    actions[:, -1] = False
    batch = dataclasses.replace(batch, action_mask=actions)
    config = SPOConfig(num_generations=2, lam=1.0, normalize_advantages=False)
    credit = assign_credit(batch, config)
    first = batch.completion_rewards - batch.token_values[:, 0]
    np.testing.assert_allclose(credit.token_advantages[:, 0], first, rtol=1e-5)


def test_files_keep_who_wrote_a_token_and_what_the_sampler_said(tmp_path):
    batch, actions = with_tools()
    batch = dataclasses.replace(batch, token_logprobs_sampler=batch.token_logprobs_old - 0.5)
    saved = load_rollouts(reference.save(batch, tmp_path / "x.parquet", SPOConfig())).rollouts
    assert np.array_equal(saved.action_mask, actions)
    assert np.array_equal(saved.token_logprobs_sampler, batch.token_logprobs_sampler)


# --- segmentation rules -----------------------------------------------------------------------


def ids_of(batch, **settings):
    return segment(batch, SPOConfig(num_generations=2, **settings))


def test_the_least_likely_tokens_start_segments():
    batch = reference.rollouts([5, 5], 2)
    starts = segment_starts(ids_of(batch, segmentation="probability", entropy_percentile=0.3))
    order = np.sort(batch.token_logprobs_old.ravel())[:3]  # round(0.3 · 10)
    expected = np.isin(batch.token_logprobs_old, order)
    expected[:, 0] = True
    assert np.array_equal(starts, expected)


def test_fixed_segments_count_from_each_rows_start():
    batch = reference.rollouts([5, 3], 2)
    ids = ids_of(batch, segmentation="fixed", segment_length=2)
    assert ids.tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, -1, -1]]


def test_segments_start_behind_a_delimiter_of_the_text():
    batch = reference.rollouts([6, 4], 2)
    texts = ["ab\nc\nd", "日\nx."]
    ends = np.array([[1, 2, 3, 4, 5, 6], [3, 4, 5, 6, -1, -1]])
    batch = dataclasses.replace(batch, completions=texts, token_ends=ends)
    ids = ids_of(batch, segmentation="delimiter")
    assert ids.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 1, 1, -1, -1]]
    ids = ids_of(batch, segmentation="delimiter", segment_delimiter=r"[bx]")
    assert ids.tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, -1, -1]]


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"segment_delimiter='\(' is no regular expression"):
        SPOConfig(segment_delimiter="(")


@pytest.mark.parametrize("rule", ["probability", "fixed", "delimiter", "turn"])
def test_a_run_is_cut_by_the_rule(rule, tmp_path):
    trainer = runs.make_trainer(tmp_path, segmentation=rule, segment_length=3, max_steps=1)
    trainer.train()
    (saved,) = runs.rollouts_of(tmp_path)
    assert np.array_equal(saved.credit.segment_ids, segment(saved.rollouts, trainer.args))
    assert saved.credit.entropy_threshold is None


# --- steps with nothing to learn ------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"lam_critic": 0.9}, {"peft_config": LoraConfig(**runs.LORA)}],
    ids=["critic first", "critic second", "shared base"],
)
def test_a_batch_without_any_reward_moves_no_weight(settings, tmp_path):
    """Not even by the optimizer's momentum, which the first step has built up."""
    calls = []

    def first_only(completion_ids, **columns):
        calls.append(1)
        return [float(ids[0] % 5) if len(calls) == 1 else None for ids in completion_ids]

    after_first = {}

    class Remember(runs.StopAfter):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                after_first.update(runs.weights_of(trainer))

    trainer = runs.make_trainer(
        tmp_path,
        reward_funcs=first_only,
        value_model="policy",
        callbacks=[Remember(9)],
        weight_decay=0.1,
        **settings,
    )
    before = runs.weights_of(trainer)
    with pytest.warns(UserWarning, match="no completion could be scored"):
        trainer.train()
    assert not runs.same_bits(before, after_first)
    assert runs.same_bits(after_first, runs.weights_of(trainer))
