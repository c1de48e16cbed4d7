"""static/credit.js, the browser's twin of assign_credit, against the Python function."""

import dataclasses
import random

import jaxtyping
import numpy as np
import pytest
from inspector_browser import browser_context
from inspector_fixtures import from_pieces

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.inspector.export import bundle
from spo.inspector.step import CREDIT_FIELDS, Step
from spo.inspector.views import credit_inputs
from spo.inspector.whatif import what_if

SCRIPT = """
(cases) => {
  %s
  %s
  return cases.map(({ inputs, configs }) => {
    const step = $credit.prepareStep($data.unpackInputs(inputs));
    return configs.map((config) => {
      const { segmentIds, advantages, cut } = $credit.assignCredit(step, config);
      return { ids: [...segmentIds], advantages: [...advantages], cut };
    });
  });
}
"""


def random_step(seed: int) -> Step:
    """Ragged, empty, tied, unscorable, truncated, dense: everything a step may be."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, 12)
    rollouts = from_pieces(rng, 1, [["x"] * n for n in lengths], 4, critic=seed % 5 != 0)
    entropies = rollouts.token_entropies
    if seed % 2:
        entropies = np.round(entropies, 1)  # many ties, and zeros, which are never decisions
    rewards = rollouts.completion_rewards.copy()
    rewards[rng.integers(12)] = np.nan
    token_rewards = rollouts.token_rewards
    if seed % 3 == 0:
        dense = rng.normal(size=token_rewards.shape).astype(np.float32)
        token_rewards = np.where(rollouts.completion_mask, dense, 0)
    rollouts = dataclasses.replace(
        rollouts,
        token_entropies=entropies.astype(np.float32),
        completion_rewards=rewards,
        token_rewards=token_rewards,
    )
    more = {"kl_in_reward": True, "beta": 0.03} if seed % 4 == 0 else {}
    more |= {"multi_objective_aggregation": "normalize_then_sum"} if seed % 4 == 2 else {}
    config = SPOConfig(num_generations=4, mask_truncated_completions=seed % 3 == 1, **more)
    return Step(rollouts, assign_credit(rollouts, config), config, "")


def random_settings(rng: random.Random, step: Step) -> tuple[Step, dict]:
    """A mode and settings that `what_if` accepts, on the step with one random configuration."""
    level = rng.choice(["segment", "token"])
    config = dataclasses.replace(
        step.config,
        scale_rewards=rng.choice(["group", "batch", "none"]),
        segment_value="start" if level == "token" else rng.choice(["start", "mean", "last"]),
        advantage_level=level,
    )
    modes = ["spo", "grpo"] + ["ppo"] * (step.rollouts.token_values is not None)
    settings = {
        "mode": rng.choice(modes),
        "entropy_percentile": rng.choice([0.0, 0.05, 0.3, 0.5, 0.77, 1.0, rng.random()]),
        "gamma": rng.choice([1.0, 0.9]),
        "lam": rng.choice([0.0, 0.95, 1.0]),
        "normalize_advantages": rng.random() < 0.5,
    }
    return dataclasses.replace(step, config=config), settings


@pytest.mark.filterwarnings("ignore:entropy_percentile:UserWarning", "ignore:gamma:UserWarning")
def test_browser_and_python_assign_the_same_credit():
    rng = random.Random(0)
    cases, expected = [], []
    for seed in range(20):
        base = random_step(seed)
        for _ in range(8):
            step, settings = random_settings(rng, base)
            fields = {name: getattr(step.config, name) for name in CREDIT_FIELDS}
            cases.append({"inputs": credit_inputs(step), "configs": [fields | settings]})
            expected.append((base.rollouts.completion_mask, [what_if(step, settings)]))

    page = browser_context().new_page()
    answers = page.evaluate(SCRIPT % (bundle("credit.js"), bundle("data.js")), cases)
    page.close()
    for case, answer, (mask, credits) in zip(cases, answers, expected, strict=True):
        for config, mine, credit in zip(case["configs"], answer, credits, strict=True):
            np.testing.assert_array_equal(mine["ids"], credit.segment_ids[mask], str(config))
            theirs = credit.token_advantages[mask]
            np.testing.assert_allclose(
                mine["advantages"], theirs, rtol=1e-6, atol=1e-6, err_msg=str(config)
            )
            assert mine["cut"] == credit.entropy_threshold


@pytest.mark.filterwarnings("ignore:entropy_percentile:UserWarning", "ignore:gamma:UserWarning")
def test_segments_of_another_rule_are_sent_and_kept():
    """Here: every fourth token starts a segment, which is no matter of entropy."""
    step = random_step(1)
    mask = step.rollouts.completion_mask
    ids = np.where(mask, (np.cumsum(mask, axis=1) - 1) // 4, -1)
    credit = dataclasses.replace(step.credit, segment_ids=ids)
    other = dataclasses.replace(step, credit=credit)
    config = {name: getattr(step.config, name) for name in CREDIT_FIELDS}
    case = {"inputs": credit_inputs(other), "configs": [config | {"mode": "spo", "lam": 0.5}]}
    page = browser_context().new_page()
    ((mine,),) = page.evaluate(SCRIPT % (bundle("credit.js"), bundle("data.js")), [case])
    page.close()
    np.testing.assert_array_equal(mine["ids"], ids[mask])
    assert credit_inputs(step)["boundaries"] is None


@pytest.mark.filterwarnings("ignore:entropy_percentile:UserWarning", "ignore:gamma:UserWarning")
@pytest.mark.parametrize("mode", ["spo", "ppo", "grpo"])
def test_tokens_of_tools_are_left_out_and_cut_after(mode):
    step = random_step(2)
    mask = step.rollouts.completion_mask
    actions = mask & ((np.cumsum(mask, axis=1) // 3) % 4 != 2)
    rollouts = dataclasses.replace(step.rollouts, action_mask=actions)
    step = dataclasses.replace(step, rollouts=rollouts, credit=assign_credit(rollouts, step.config))
    assert (step.credit.token_advantages[mask & ~actions] == 0).all()
    config = {name: getattr(step.config, name) for name in CREDIT_FIELDS}
    settings = {"mode": mode, "lam": 0.5, "entropy_percentile": 0.1}
    inputs = credit_inputs(step)
    case = {"inputs": inputs, "configs": [config | settings]}
    page = browser_context().new_page()
    ((mine,),) = page.evaluate(SCRIPT % (bundle("credit.js"), bundle("data.js")), [case])
    page.close()
    expected = what_if(step, settings)
    np.testing.assert_array_equal(mine["ids"], expected.segment_ids[mask])
    np.testing.assert_allclose(mine["advantages"], expected.token_advantages[mask], atol=1e-5)
    assert inputs["boundaries"] is None


class Recorder:
    """A configuration that notes which of its fields are read."""

    def __init__(self, config):
        self.config, self.read = config, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.config, name)


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_credit_fields_are_all_that_credit_reads(seed, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a recorder is no SPOConfig
    step = random_step(seed)
    recorder = Recorder(step.config)
    assign_credit(step.rollouts, recorder)
    assert recorder.read <= set(CREDIT_FIELDS)


def test_what_if_with_saved_settings_is_what_training_did():
    step = random_step(2)
    trained = assign_credit(step.rollouts, step.config)
    again = what_if(step, {"mode": "spo"})
    np.testing.assert_array_equal(trained.token_advantages, again.token_advantages)
    np.testing.assert_array_equal(trained.segment_ids, again.segment_ids)
