"""Verdicts: planted events are found where they are, and a healthy run reads as one."""

import json

import numpy as np
import pytest

from spo.inspector.folder import Folder
from spo.inspector.history import Histories, History
from spo.inspector.verdicts import verdicts

STEPS = 1000
SAMPLES = "assets/sample_rollouts"


def healthy(seed: int, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Curves of a run that goes well: noisy rewards that rise and level off only at the end, an
    entropy that falls by a third, lengths that wander, gradients with a heavy tail."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1, steps)
    top = rng.uniform(0.55, 0.9)
    rise = rng.uniform(0.8, 1.6)
    wander = np.cumsum(rng.normal(size=steps)) / np.sqrt(steps)
    return {
        "reward": 0.1 + top * x**rise + rng.normal(0, 0.05, steps),
        "entropy": 0.5 * (1 - 0.35 * x) + rng.normal(0, 0.03, steps),
        "completions/clipped_ratio": np.clip(rng.normal(0.05, 0.04, steps), 0, 1),
        "completions/mean_length": 200 * (1 + 0.05 * wander) + rng.normal(0, 10, steps),
        "frac_reward_zero_std": np.clip(0.2 + 0.2 * x + rng.normal(0, 0.1, steps), 0, 1),
        "grad_norm": rng.lognormal(-1, 0.35, steps),
        "spo/value_grad_norm": rng.lognormal(0, 0.35, steps),
        "kl": 0.05 * x + np.abs(rng.normal(0, 0.01, steps)),
    }


def history(curves: dict[str, np.ndarray], lines=()) -> History:
    points = {
        name: [[step + 1, float(x)] for step, x in enumerate(values)]
        for name, values in curves.items()
    }
    return History("run", list(lines), [], points)


def flat(curves, rng, at):
    level = curves["reward"][at - 30 : at].mean()
    curves["reward"][at:] = level + rng.normal(0, 0.05, STEPS - at)


def collapse(curves, rng, at):
    curves["entropy"][at:] = 0.12 + rng.normal(0, 0.02, STEPS - at)


def truncation(curves, rng, at):
    curves["completions/clipped_ratio"][at:] = 0.5 + rng.normal(0, 0.05, STEPS - at)


def contrast(curves, rng, at):
    curves["frac_reward_zero_std"][at:] = 0.85 + rng.normal(0, 0.05, STEPS - at)


def spike(curves, rng, at):
    curves["grad_norm"][at] = 30.0


def length(curves, rng, at):
    flat(curves, rng, at)
    growth = np.linspace(0, 1.2, STEPS - at)
    curves["completions/mean_length"][at:] = 200 * (1 + growth) + rng.normal(0, 10, STEPS - at)


def drift(curves, rng, at):
    curves["kl"][at:] = 0.8 + rng.normal(0, 0.05, STEPS - at)


EVENTS = {
    "flat": flat,
    "entropy": collapse,
    "truncated": truncation,
    "no contrast": contrast,
    "spike": spike,
    "length": length,
    "kl": drift,
}


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize(("seed", "at"), [(0, 400), (1, 500), (2, 350)])
def test_a_planted_event_is_found_within_sixty_steps(kind, seed, at):
    curves = healthy(seed)
    EVENTS[kind](curves, np.random.default_rng(seed + 100), at)
    found = {verdict.kind: verdict for verdict in verdicts(history(curves))}
    assert kind in found, f"{kind} was not said, only {list(found)}"
    assert abs(found[kind].since - (at + 1)) <= 60
    assert str(found[kind].since) in found[kind].sentence
    related = {"length": {"flat"}}.get(kind, set())
    assert len(found.keys() - {kind} - related) <= 1


def test_ten_healthy_runs_raise_at_most_one_flag():
    said = [verdict for seed in range(10) for verdict in verdicts(history(healthy(seed)))]
    assert len(said) <= 1, [verdict.sentence for verdict in said]


def test_the_healthy_quickstart_raises_its_gradient_spike_only():
    found = verdicts(Histories(Folder(SAMPLES)).get("quickstart"))
    assert [verdict.kind for verdict in found] == ["spike"]
    points = dict(Histories(Folder(SAMPLES)).get("quickstart").curves["grad_norm"])
    assert points[found[0].since] == max(points.values())


def test_a_short_or_empty_run_says_nothing():
    assert verdicts(history({})) == []
    assert verdicts(history({name: x[:20] for name, x in healthy(0).items()})) == []


def line(step, **changes):
    base = {
        "step": step,
        "num_generations": 2,
        "prompt_index": [0, 1],
        "reward": [0, 1, 1, 0],
        "length": [10, 12, 9, 11],
        "truncated": [],
        "distinct": 1.0,
        "explained_variance": 0.5,
        "explained_variance_prompt": 0.3,
        "rewards_by_function": {"a": None},
    }
    return base | changes


def test_a_critic_that_explains_less_than_the_prompt_alone():
    lines = [line(step, explained_variance=0.5 if step < 60 else 0.1) for step in range(1, 101)]
    (found,) = verdicts(history({}, lines))
    assert found.kind == "critic"
    assert abs(found.since - 60) <= 5


def test_completions_that_repeat():
    lines = [line(step, distinct=1.0 if step < 40 else 0.3) for step in range(1, 101)]
    (found,) = verdicts(history({}, lines))
    assert (found.kind, abs(found.since - 40) <= 5) == ("duplicates", True)


def test_one_function_that_carries_all_the_gain():
    rng = np.random.default_rng(0)
    rise = np.linspace(0, 1, 200)
    curves = {
        "rewards/format/mean": rise + rng.normal(0, 0.05, 200),
        "rewards/correct/mean": 0.3 + rng.normal(0, 0.05, 200),
    }
    (found,) = verdicts(history(curves))
    assert found.kind == "one function"
    assert found.sentence.startswith("format carries all the gain")
    curves["rewards/correct/mean"] = 0.3 + 0.4 * rise
    assert verdicts(history(curves)) == []


def test_metrics_are_preferred_and_the_index_fills_in(tmp_path):
    lines = [line(step) for step in (1, 2)]
    both = History("run", lines, [], {"reward": [[1, 0.7]]})
    assert both.series("reward").values.tolist() == [0.7]
    assert both.series("completions/mean_length").values.tolist() == [10.5, 10.5]
    assert both.series("frac_reward_zero_std").values.tolist() == [0.0, 0.0]
    assert both.series("rewards/a/mean").values.tolist() == [0.5, 0.5]
    assert json.dumps(both.lines)
