"""benchmarks/learning.py and its report: two real updates, and arithmetic on made-up curves."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reasoning_gym import create_dataset
from reasoning_gym.utils import extract_answer

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "benchmarks"))

import breakdowns  # noqa: E402
import exact_critic  # noqa: E402
import gradients  # noqa: E402
import learning_report  # noqa: E402

pytest.importorskip("matplotlib")


def made_up(mode: str, seed: int, accuracies: list[float], seconds: float = 1.0) -> dict:
    evaluations = [
        {"update": 10 * i, "accuracy": accuracy, "cpu_seconds": seconds * i}
        for i, accuracy in enumerate(accuracies)
    ]
    run = {"task": "t", "mode": mode, "seed": seed, "samples_per_update": 4}
    return run | {"evaluations": evaluations, "steps": {}}


def test_samples_and_seconds_to_the_baselines_final_accuracy():
    """The other mode is there after half the samples, each of which took it three times as long."""
    runs = {
        "grpo": {s: made_up("grpo", s, [0.2, 0.3, 0.4, 0.5, 0.6]) for s in (1, 2)},
        "spo": {s: made_up("spo", s, [0.2, 0.4, 0.6, 0.7, 0.8], 3.0) for s in (1, 2)},
        "worse": {s: made_up("worse", s, [0.2, 0.2, 0.2, 0.2, 0.2]) for s in (1, 2)},
    }
    rows = {row["mode"]: row for row in learning_report.summarise(runs)}
    assert rows["grpo"]["samples_ratio"] == rows["grpo"]["seconds_ratio"] == 1.0
    assert rows["spo"]["samples_ratio"] == 0.5
    assert rows["spo"]["seconds_ratio"] == 1.5
    assert rows["worse"]["samples_ratio"] is None
    assert rows["spo"]["against_grpo"]["mean"] == pytest.approx(0.175)
    assert rows["spo"]["final_accuracy"] == 0.8
    assert rows["spo"]["at_trl_seconds"] is None


def test_the_baseline_is_grpo_mode_at_its_better_learning_rate():
    runs = {
        "grpo": {1: made_up("grpo", 1, [0.2, 0.5, 0.4])},
        "grpo_slow": {1: made_up("grpo_slow", 1, [0.2, 0.4, 0.6])},
        "spo": {1: made_up("spo", 1, [0.2, 0.6, 0.8])},
    }
    rows = {row["mode"]: row for row in learning_report.summarise(runs)}
    assert rows["spo"]["target"] == 0.6
    assert rows["spo"]["samples_ratio"] == 0.5
    assert rows["grpo"]["samples_ratio"] is None
    # three quarters of the way up, at 0.5, the rate that ends lower is the faster one
    assert rows["spo"]["early_samples_ratio"] == 0.75
    assert rows["grpo"]["early_samples_ratio"] == 1.0
    assert rows["grpo_slow"]["early_samples_ratio"] == 1.5


def test_accuracy_when_the_other_trainers_time_is_up():
    """Ours took 3 s an evaluation, theirs 1 s; after their 4 s we are a third past the first."""
    runs = {
        "grpo": {1: made_up("grpo", 1, [0.2, 0.3, 0.4, 0.5, 0.6], 3.0)},
        "trl_grpo": {1: made_up("trl_grpo", 1, [0.2, 0.2, 0.2, 0.2, 0.5])},
    }
    rows = {row["mode"]: row for row in learning_report.summarise(runs)}
    assert rows["grpo"]["at_trl_seconds"] == pytest.approx(0.3 + 0.1 / 3, abs=1e-4)
    assert rows["trl_grpo"]["at_trl_seconds"] == 0.5


def test_seeds_without_a_baseline_are_not_compared():
    runs = {
        "grpo": {1: made_up("grpo", 1, [0.2, 0.4])},
        "spo": {s: made_up("spo", s, [0.2, 0.4]) for s in (1, 2)},
    }
    rows = {row["mode"]: row for row in learning_report.summarise(runs)}
    assert rows["spo"]["seeds"] == [1]


@pytest.mark.parametrize(("differences", "p"), [([0.1, -0.1], 1.0), ([0.1, 0.2, 0.0, 0.1], 0.0917)])
def test_paired_test(differences, p):
    assert learning_report.paired_test(differences)["p"] == pytest.approx(p, abs=2e-4)


def test_two_updates_of_every_kind_of_run_end_in_a_table_and_a_plot(tmp_path):
    modes = ["grpo", "reference", "values_0", "exact_values"]
    try:
        import trl  # noqa: F401

        modes.append("trl_grpo")
    except ImportError:
        pass
    command = [sys.executable, "benchmarks/learning.py", "--tasks", "smoke", "--modes", *modes]
    command += ["--seeds", "1", "--out", str(tmp_path / "learning")]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    table = json.loads((tmp_path / "tuned.json").read_text())["tasks"]["smoke"]
    assert sorted(row["mode"] for row in table) == sorted(modes)
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("learning/tuned/smoke/*.json")]
    # the base model on the same problems with the same random numbers, whoever trains it
    assert len({run["evaluations"][0]["accuracy"] for run in runs}) == 1
    assert all(run["evaluations"][-1]["cpu_seconds"] > 0 for run in runs)
    assert all(len(run["steps"]["reward"]) == 2 for run in runs)


def test_signal_to_noise_and_cosine_of_gradients_that_are_known():
    """Around (1, 0) with variance 0.5 in each of two directions; the reference points to (1, 1)."""
    rng = np.random.default_rng(0)
    ours = np.array([1.0, 0.0]) + rng.normal(0, 0.5**0.5, (40_000, 2))
    theirs = np.array([1.0, 1.0]) + rng.normal(0, 0.1, (40_000, 2))
    found = gradients.signal_and_noise(ours, theirs)
    assert found["signal_to_noise"] == pytest.approx(1.0, abs=0.03)
    assert found["cosine"] == pytest.approx(0.5**0.5, abs=0.01)
    # the root mean square of the first coordinate is √(1² + ½)
    assert found["adam_gain"] == pytest.approx(1.5**-0.5, abs=0.02)


@pytest.mark.parametrize(
    ("solution", "mistake"),
    [
        ("4-1=3\nso 3+7=10\n<answer>10</answer>", None),
        ("4-1=2\nso 2+7=9\n<answer>9</answer>", "sum"),
        ("4-1=3\nso 3+7=10\n<answer>9</answer>", "copy"),
        ("4-1=3\nso 2+7=9\n<answer>9</answer>", "copy"),
        ("4-1=3\n3-7=-4\n<answer>-4</answer>", "place"),
        ("4-1=3\n<answer>3</answer>", "place"),
        ("4-1=3\n3+7=10\n10+7=17\n<answer>17</answer>", "place"),
        ("4-1=3 <answer>3</answer>", "form"),
        ("4-1=\n<answer>3</answer>", "form"),
    ],
)
def test_first_mistake(solution, mistake):
    assert breakdowns.first_mistake("4 - 1 + 7", solution) == mistake


LINES = ["4-1=3", "3+7=10", "<answer>10</answer>"]


@pytest.mark.parametrize(
    ("solution", "ends", "wrong_at"),
    [
        ("4-1=3\nso 3+7=10\n<answer>10</answer>", [5, 15, 35], None),
        ("4-1=3\n3+7=9\n<answer>9</answer>", [5], 10),
        ("4-1=3\n3+7=100\n<answer>10</answer>", [5], 12),  # a character too many
        ("4-1=3\n3+7=1\n<answer>10</answer>", [5], 11),  # one too few: the line break is wrong
        ("4-1=3\n3+7=10", [5, 12], 12),
        ("4-1=3\n3+7=10\n<answer>10</answer>\n", [5, 12, 32], 32),
        ("", [], 0),
    ],
)
def test_where_a_solution_goes_wrong(solution, ends, wrong_at):
    assert exact_critic.progress(LINES, solution) == (ends, wrong_at)


@pytest.mark.parametrize("task", ["chain_sum", "leg_counting"])
def test_the_right_lines_of_a_task_are_worth_the_full_reward(task):
    problems = create_dataset(task, size=20, seed=3)
    for entry in problems:
        answer = extract_answer("\n".join(exact_critic.right_lines(task, entry)))
        assert problems.score_answer(answer, entry) == 1.0


def test_modes_are_compared_over_the_seeds_they_share():
    ours = {s: made_up("spo_lam90", s, [0.2, 0.5]) for s in (1, 2, 3)}
    theirs = {s: made_up("spo_p20", s, [0.2, 0.4]) for s in (2, 3, 4)}
    found = learning_report.difference(ours, theirs)
    assert (found["seeds"], found["mean"]) == (2, 0.1)
    assert learning_report.difference(ours, {}) is None


def test_explained_variance_is_averaged_over_tenths_of_the_run_and_seeds():
    series = {1: [0.0, None, *[0.2] * 18], 2: [0.4, 0.2, *[0.4] * 18]}
    runs = {
        seed: made_up("spo", seed, [0.2]) | {"steps": {"spo/explained_variance": values}}
        for seed, values in series.items()
    }
    samples, explained = learning_report.explained_curve(runs).T
    assert samples.tolist() == [8 * i for i in range(1, 11)]
    assert explained == pytest.approx([0.2, *[0.3] * 9])
    of_nothing = {1: made_up("reinforce", 1, [0.2]) | {"steps": {"spo/explained_variance": [0.0]}}}
    assert learning_report.explained_curve(of_nothing) is None
