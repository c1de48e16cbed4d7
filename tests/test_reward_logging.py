"""What rewards may know and log, as in TRL: trainer_state, log_metric, log_extra, tables."""

import sys
from types import SimpleNamespace

import accelerate.tracking
import numpy as np
import pytest
import tiny_runs as runs
from datasets import Dataset

from spo import scoring
from spo.rewards.calling import RewardError
from spo.rewards.logged import Logged
from spo.rollouts import load_rollouts


def lengths(completion_ids, log_metric, log_extra, trainer_state, **columns):
    sizes = [len(ids) for ids in completion_ids]
    log_metric("longest", max(sizes))
    log_metric("step seen", trainer_state.global_step)
    log_extra("size", sizes)
    log_extra("note", [f"of {trainer_state.max_steps}"] * len(sizes))
    return [float(size) for size in sizes]


async def later(completion_ids, log_metric, **columns):
    log_metric("longest", 100.0)
    return [0.0 for _ in completion_ids]


def strict(prompts, completions, completion_ids):
    """No **columns: it gets what it names and nothing else."""
    return [1.0] * len(prompts)


def test_metrics_go_to_the_metrics_file_and_columns_into_the_rollouts(tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run", reward_funcs=[lengths, later, strict], eval_dataset=runs.prompts(3)
    )
    metrics = trainer.train().metrics
    steps = [line for line in runs.metrics_of(tmp_path / "run") if "reward" in line]
    for line in steps:
        saved = load_rollouts(tmp_path / f"run/rollouts/step-{line['step']:06d}.parquet")
        longest = saved.rollouts.lengths.max()
        assert saved.rollouts.columns["size"] == saved.rollouts.lengths.tolist()
        assert saved.rollouts.columns["note"] == ["of 2"] * 8
        assert line["longest"] == pytest.approx((longest + 100) / 2)
        assert line["step seen"] == line["step"] - 1  # of steps done, as in TRL
    assert metrics["step seen"] == 1
    held_out = [line for line in runs.metrics_of(tmp_path / "run") if "eval/reward" in line]
    assert [line["eval/step seen"] for line in held_out] == [0, 2]


def test_a_reward_that_rewrites_the_state_rewrites_a_copy(tmp_path):
    def meddler(completions, trainer_state, **columns):
        trainer_state.global_step = 77
        trainer_state.log_history.clear()
        return [float(len(text)) for text in completions]

    trainer = runs.make_trainer(tmp_path / "run", reward_funcs=meddler)
    trainer.train()
    assert trainer.state.global_step == 2
    assert [e["step"] for e in trainer.state.log_history if "reward" in e] == [1, 2]


def with_column(values):
    def reward(completions, log_extra, **columns):
        log_extra("seen", values)
        return [0.0] * len(completions)

    return reward


def with_metric(value):
    def reward(completions, log_metric, **columns):
        log_metric("seen", value)
        return [0.0] * len(completions)

    return reward


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (with_column([1, 2]), "log_extra got 2 entries of column 'seen' for 8 completions"),
        (with_metric("high"), "log_metric('seen') got 'high', which is no finite number"),
        (with_metric(float("nan")), "log_metric('seen') got nan, which is no finite number"),
    ],
)
def test_what_cannot_be_logged_is_one_sentence(reward, message, tmp_path):
    with pytest.raises(RewardError) as error:
        runs.make_trainer(tmp_path / "run", reward_funcs=reward).train()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["trainer_state", "log_metric", "completion_ids", "prompts"])
def test_a_column_that_a_reward_gets_from_the_trainer_is_refused_before_training(name, tmp_path):
    data = Dataset.from_dict({"prompt": ["a"] * 8, name: ["x"] * 8})
    with pytest.raises(ValueError, match=f"column '{name}', which is a name that reward functions"):
        runs.make_trainer(tmp_path / "run", train_dataset=data)
    assert not (tmp_path / "run").exists()


def test_processes_are_averaged_by_call_and_their_columns_joined(monkeypatch):
    """The other process logged other names, and more often."""
    here, there = Logged(), Logged()
    here.log_metric("both", 1.0)
    here.log_extra("mine", [1, 2])
    for value in (4.0, 7.0):
        there.log_metric("both", value)
    there.log_metric("theirs", 5)
    there.log_extra("yours", np.array([3]))
    monkeypatch.setattr(scoring, "gather_object", lambda batches: [*batches, there.metrics])
    assert scoring.metrics_of_all([here]) == {"both": 4.0, "theirs": 5.0}
    monkeypatch.setattr(scoring, "gather_object", lambda rows: [*rows, {"yours": 3}])
    columns = scoring.columns_of_all(here, 2)
    assert columns == {"mine": [1, 2, None], "yours": [None, None, 3]}


# --- tables ----------------------------------------------------------------------------------
@pytest.fixture
def tracker(monkeypatch, request):
    """A module that stands in for wandb or trackio, and what was logged to it."""
    logged = []
    run = SimpleNamespace(
        log=lambda values, step=None, **_: logged.append((step, values)), finish=lambda: None
    )
    module = SimpleNamespace(
        init=lambda **_: run,
        config=SimpleNamespace(update=lambda *_, **__: None),
        Table=lambda dataframe, **_: dataframe,
        run=run,
    )
    kind = accelerate.tracking.LoggerType(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [kind])
    return request.param, logged


@pytest.mark.parametrize("tracker", ["wandb", "trackio"], indirect=True)
def test_trackers_with_tables_get_every_completion(tracker, tmp_path):
    name, logged = tracker
    runs.make_trainer(
        tmp_path / "run",
        reward_funcs=[lengths, runs.low_bytes],
        report_to=name,
        log_completions=True,
        log_completions_steps=2,
        max_steps=4,
    ).train()
    tables = {step: values["completions"] for step, values in logged if "completions" in values}
    assert [*tables] == [2, 4]
    for step, table in tables.items():
        saved = runs.rollouts_of(tmp_path / "run")[step - 1]
        assert table["prompt"].tolist() == saved.rollouts.prompts
        assert table["completion"].tolist() == saved.rollouts.completions
        by_function = saved.rollouts.rewards_by_function
        np.testing.assert_allclose(table["low_bytes"].astype(float), by_function[:, 1], rtol=1e-6)
        assert table["size"].tolist() == saved.rollouts.lengths.tolist()
        assert table["note"].tolist() == ["of 4"] * 8
        np.testing.assert_allclose(
            table["advantage"], saved.credit.token_advantages[:, 0], rtol=1e-5, atol=1e-6
        )
        assert table["step"].tolist() == [step] * 8
    assert [step for step, values in logged if "longest" in values] == [1, 2, 3, 4]


@pytest.mark.parametrize("tracker", ["wandb"], indirect=True)
def test_a_column_of_many_kinds_and_a_missing_reward_fit_into_a_table(tracker, tmp_path):
    def odd(completions, log_extra, **columns):
        log_extra("found", [1, "one", None, [1], {"a": 1}, 2.5, True, "x"])
        return [None if i == 3 else float(i) for i in range(8)]

    name, logged = tracker
    runs.make_trainer(
        tmp_path / "run", reward_funcs=odd, report_to=name, log_completions=True, max_steps=1
    ).train()
    assert not [values for _, values in logged if "completions" in values]  # step 10 is the first
    runs.make_trainer(
        tmp_path / "again",
        reward_funcs=odd,
        report_to=name,
        log_completions=True,
        log_completions_steps=1,
        max_steps=1,
    ).train()
    (table,) = [values["completions"] for _, values in logged if "completions" in values]
    assert table["found"].tolist()[:2] == ["1", "one"]
    assert table["reward"].isna().tolist() == [False] * 3 + [True] + [False] * 4


def test_the_terminal_shows_what_was_logged(tmp_path, capsys):
    runs.make_trainer(
        tmp_path / "run", reward_funcs=lengths, log_completions=True, log_completions_steps=1
    ).train()
    shown = capsys.readouterr().out
    assert "note" in shown
    assert "of 2" in shown
