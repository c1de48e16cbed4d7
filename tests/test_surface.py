"""What TRL's users touch on a trainer: the result, callbacks, evaluations, the best model."""

import json
import math
from pathlib import Path

import pytest
import tiny_runs as runs
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from spo import SPOConfig, SPOTrainer
from spo.run.checkpoint import checkpoints_in

# --- the result and the state ----------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after three steps, and what `train` returned."""
    trainer = runs.make_trainer(
        tmp_path_factory.mktemp("surface") / "run",
        value_model="policy",
        max_steps=3,
        beta=0.1,
        eval_dataset=runs.prompts(3),
    )
    return trainer, trainer.train()


def test_train_returns_what_transformers_does(trained):
    trainer, result = trained
    assert isinstance(result, TrainOutput)
    lines = [line for line in runs.metrics_of(trainer.output_dir) if "reward" in line]
    assert result.global_step == 3
    losses = [line["spo/policy_loss"] for line in lines]
    assert result.training_loss == pytest.approx(sum(losses) / 3)
    metrics = result.metrics
    assert metrics["reward"] == lines[-1]["reward"]
    assert metrics["mean/reward"] == pytest.approx(sum(line["reward"] for line in lines) / 3)
    assert metrics["train_loss"] == result.training_loss
    seconds = metrics["train_runtime"]
    assert 0 < seconds < 600
    assert metrics["train_samples_per_second"] == pytest.approx(24 / seconds, rel=0.01)
    assert metrics["train_steps_per_second"] == pytest.approx(3 / seconds, rel=0.05)


def test_the_policy_and_the_reference_are_models_of_transformers(trained, tmp_path):
    trainer, _ = trained
    assert trainer.model is trainer.policy.model
    assert type(trainer.ref_model) is type(trainer.model)
    first = runs.policy().state_dict()
    assert all(weight.equal(first[name]) for name, weight in trainer.ref_model.state_dict().items())
    assert not any(p.equal(first[n]) for n, p in trainer.model.state_dict().items() if "q_pro" in n)
    assert runs.make_trainer(tmp_path / "without").ref_model is None
    adapter = LoraConfig(**runs.LORA)
    assert runs.make_trainer(tmp_path / "lora", peft_config=adapter, beta=0.1).ref_model is None


def test_the_history_is_saved_and_metrics_are_saved_and_printed(trained, capsys):
    trainer, result = trained
    run = trainer.output_dir
    trainer.save_state()
    saved = json.loads((run / "trainer_state.json").read_text())
    assert (saved["global_step"], saved["max_steps"]) == (3, 3)
    rewards = [entry["reward"] for entry in saved["log_history"] if "reward" in entry]
    assert rewards == [line["reward"] for line in runs.metrics_of(run) if "reward" in line]
    trainer.save_metrics("train", result.metrics)
    trainer.save_metrics("eval", {"eval_reward": 0.5})
    assert json.loads((run / "train_results.json").read_text()) == result.metrics
    everything = json.loads((run / "all_results.json").read_text())
    assert everything == result.metrics | {"eval_reward": 0.5}
    trainer.log_metrics("eval", {"eval_reward": 0.5, "eval_x": 2})
    assert capsys.readouterr().out.splitlines() == [
        "***** eval metrics *****",
        "  eval_reward = 0.5",
        "  eval_x      = 2",
    ]
    assert trainer.is_world_process_zero()
    assert trainer.is_local_process_zero()


def test_a_model_card_takes_what_it_is_given_and_keeps_it(trained, tmp_path):
    trainer, _ = trained
    trainer.create_model_card("My model", dataset_name="sums", tags=["math", "spo"])
    for path in (trainer.output_dir, trainer.save_model(tmp_path / "again")):
        card = (path / "README.md").read_text()
        assert "\n# My model\n" in card
        assert "- dataset: sums" in card
        assert "tags: [spo, reinforcement-learning, text-generation, math]" in card


def test_overwriting_a_run_takes_its_result_files_away(tmp_path):
    trainer = runs.make_trainer(tmp_path / "run", max_steps=1)
    trainer.save_metrics("train", trainer.train().metrics)
    trainer.save_state()
    (tmp_path / "run" / "mine.json").write_text("{}")
    runs.make_trainer(tmp_path / "run", overwrite_output_dir=True)
    assert {p.name for p in (tmp_path / "run").glob("*.json")} == {"mine.json", "spo_run.json"}


def test_numbers_of_a_persons_own_are_logged_everywhere(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Adds(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.log({"mine": torch.tensor(0.5) * state.global_step})

    trainer = runs.make_trainer(
        tmp_path / "run", callbacks=[Adds], report_to=["tensorboard"], run_name="tiny"
    )
    trainer.train()
    assert [e["mine"] for e in trainer.state.log_history if "mine" in e] == [0.5, 1.0]
    lines = runs.metrics_of(tmp_path / "run")
    assert [(e["step"], e["mine"]) for e in lines if "mine" in e] == [(1, 0.5), (2, 1.0)]
    scalars = EventAccumulator(str(tmp_path / "run" / "tiny")).Reload().Scalars("mine")
    assert [event.value for event in scalars] == [0.5, 1.0]


def test_the_history_goes_on_where_a_run_does(tmp_path):
    settings = {"max_steps": 3, "save_steps": 2, "eval_dataset": runs.prompts(3)}
    runs.make_trainer(tmp_path / "run", callbacks=[runs.StopAfter(2)], **settings).train()
    trainer = runs.make_trainer(tmp_path / "run", **settings)
    trainer.train(resume_from_checkpoint=tmp_path / "run" / "checkpoint-000002")
    steps = [(e["step"], "eval_reward" in e) for e in trainer.state.log_history]
    assert steps[:3] == [(0, True), (1, False), (2, False)]
    assert steps[-3:] == [(3, False), (3, True), (3, False)]


# --- trackers --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["none", None, [], ["none"], "all", "tensorboard"])
def test_trackers_may_be_said_in_every_way_of_transformers(given, tmp_path):
    trainer = runs.make_trainer(tmp_path / "run", report_to=given, max_steps=1)
    trainer.train()
    named = given in ("all", "tensorboard")
    assert ("tensorboard" in trainer.args.report_to) == named
    assert bool(list((tmp_path / "run").rglob("events.out.tfevents.*"))) == named


def test_several_trackers_hear_the_same(tmp_path, monkeypatch):
    from accelerate import tracking

    heard = {}

    class Listens(tracking.GeneralTracker):
        name, requires_logging_directory = "listens", False
        tracker = property(lambda self: self)

        def __init__(self, run_name, **kwargs):
            heard["name"] = run_name

        def store_init_configuration(self, values):
            heard["learning_rate"] = values["learning_rate"]

        def log(self, values, step=None, **kwargs):
            heard[step] = values["reward"]

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Listens)
    monkeypatch.setattr(tracking, "is_trackio_available", lambda: True)
    available = [*tracking.get_available_trackers(), tracking.LoggerType.TRACKIO]
    monkeypatch.setattr(tracking, "_available_trackers", available)
    trainer = runs.make_trainer(
        tmp_path / "run", report_to=["tensorboard", "trackio"], run_name="tiny"
    )
    trainer.train()
    rewards = [line["reward"] for line in runs.metrics_of(tmp_path / "run")]
    assert [heard[1], heard[2]] == pytest.approx(rewards)
    assert (heard["name"], heard["learning_rate"]) == ("tiny", 1e-3)
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


# --- callbacks -------------------------------------------------------------------------------


class Recorder(TrainerCallback):
    """The name of every event, with what it is about."""

    def __init__(self):
        self.events = []
        for name in dir(TrainerCallback):
            if name.startswith("on_"):
                setattr(self, name, self._of(name))

    def _of(self, event):
        def record(args, state, control, **kwargs):
            self.events.append((event, state.global_step))
            if event != "on_init_end":
                assert {"model", "processing_class", "optimizer", "lr_scheduler"} <= kwargs.keys()
                assert isinstance(kwargs["model"], nn.Module)
            assert ("logs" in kwargs) == (event == "on_log")
            assert ("metrics" in kwargs) == (event == "on_evaluate")

        return record


class Line(nn.Module):
    """The smallest thing that transformers.Trainer trains."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, labels):
        return {"loss": (self.weight * x - labels).square().mean(), "logits": self.weight * x}


def events_of_transformers(folder: Path, data: int, evaluated: int, **settings) -> list:
    """`on_prediction_step` and `on_substep_end` have no counterpart in a step of rollouts."""
    recorder = Recorder()
    rows = [{"x": torch.tensor(1.0), "labels": torch.tensor(1.0)}] * data
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **settings,
    )
    trainer = Trainer(Line(), args, train_dataset=rows, eval_dataset=rows[:evaluated])
    trainer.add_callback(recorder)
    recorder.events.append(("on_init_end", 0))  # it was added after that
    trainer.train()
    return [event for event in recorder.events if event[0] != "on_prediction_step"]


SHAPES = {
    "steps": {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 2},
    "epochs": {"logging_steps": 1, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "first step": {"logging_steps": 4, "logging_first_step": True, "save_strategy": "no"},
    "fractions": {"logging_steps": 0.5, "save_steps": 0.3, "eval_strategy": "no"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_events_come_in_the_order_of_transformers(shape, tmp_path):
    """Two epochs of three steps, each of two prompts."""
    settings = SHAPES[shape] | {"num_train_epochs": 2.0}
    expected = events_of_transformers(tmp_path / "theirs", 6, 2, **settings)
    recorder = Recorder()
    trainer = runs.make_trainer(
        tmp_path / "ours",
        train_dataset=runs.prompts(6),
        eval_dataset=runs.prompts(2),
        eval_on_start=False,
        max_steps=-1,
        callbacks=[recorder],
        **({"eval_strategy": "no"} | settings),
    )
    trainer.train()
    if shape == "first step":  # ours logs the last step, whatever logging_steps
        last = expected.index(("on_epoch_end", 6))
        expected.insert(last, ("on_log", 6))
    assert recorder.events == expected


def test_on_log_comes_only_with_something_to_say(tmp_path):
    recorder = Recorder()
    runs.make_trainer(tmp_path / "run", callbacks=[recorder], max_steps=5, logging_steps=4).train()
    assert [step for event, step in recorder.events if event == "on_log"] == [4, 5, 5]


def test_a_callback_that_returns_a_control_or_sets_a_flag_is_heard(tmp_path):
    class Asks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                control = type(control)(should_log=True, should_evaluate=True, should_save=True)
                return control

    trainer = runs.make_trainer(
        tmp_path / "run",
        callbacks=[Asks],
        max_steps=4,
        logging_steps=4,
        eval_dataset=runs.prompts(2),
        eval_strategy="no",
    )
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history] == [2, 2, 4, 4]
    assert [p.name for p in checkpoints_in(tmp_path / "run")] == ["checkpoint-000002"]


def test_callbacks_come_and_go(tmp_path):
    first, second = Recorder(), Recorder()
    trainer = runs.make_trainer(tmp_path / "run", callbacks=[first], max_steps=1)
    trainer.add_callback(second)
    trainer.add_callback(EarlyStoppingCallback)  # a class is made one; it would refuse this run
    assert type(trainer.pop_callback(EarlyStoppingCallback)) is EarlyStoppingCallback
    assert trainer.pop_callback(EarlyStoppingCallback) is None
    trainer.remove_callback(first)
    trainer.train()
    assert first.events == [("on_init_end", 0)]
    assert second.events[0] == ("on_train_begin", 0)
    assert second.events[-1] == ("on_train_end", 1)


# --- evaluation ------------------------------------------------------------------------------


def test_several_data_sets_are_evaluated_by_name(tmp_path):
    sets = {"short": runs.prompts(2), "long": runs.prompts(5)}
    trainer = runs.make_trainer(tmp_path / "run", eval_dataset=sets, max_steps=1)
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_short_reward", "eval_long_reward"} <= metrics.keys()
    assert metrics["eval_short_reward"] == trainer.evaluate(sets["short"])["eval_reward"]
    prefixed = trainer.evaluate({"x": sets["long"]}, metric_key_prefix="test")
    assert prefixed["test_x_reward"] == metrics["eval_long_reward"]
    lines = runs.metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines if "eval/long_reward" in line] == [0, 1, 1]
    assert any(line.get("test/x_reward") == prefixed["test_x_reward"] for line in lines)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "eval/long_reward" in card
    assert "eval/short_reward" in card


def test_several_completions_a_prompt_are_averaged(tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run",
        eval_dataset=runs.prompts(2),
        num_generations_eval=50,
        eval_temperature=1.0,
        reward_funcs=lambda completion_ids, **_: [float(i % 2) for i in range(len(completion_ids))],
    )
    assert trainer.evaluate()["eval_reward"] == 0.5
    seen = []
    trainer.reward_functions[0] = trainer.reward_functions[0].__class__(
        "all", lambda completions, **_: seen.extend(completions) or [0.0] * len(completions)
    )
    trainer.evaluate()
    assert len(seen) == 100
    assert len(set(seen)) > 20
    with pytest.warns(UserWarning, match="all completions of a prompt are the same"):
        SPOConfig(num_generations_eval=2)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [0, 4]),
        ({"eval_steps": 2}, [0, 2, 4]),
        ({"eval_steps": 0.25}, [0, 1, 2, 3, 4]),
        ({"eval_on_start": False}, [4]),
        ({"eval_strategy": "no"}, []),
        ({"eval_strategy": "epoch"}, [0, 2, 4]),
    ],
    ids=str,
)
def test_evaluations_come_when_they_are_asked_for(settings, steps, tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run",
        train_dataset=runs.prompts(4),
        eval_dataset=runs.prompts(2),
        max_steps=4,
        **settings,
    )
    trainer.train()
    evaluated = [e["step"] for e in trainer.state.log_history if "eval_reward" in e]
    assert evaluated == steps


# --- the best model --------------------------------------------------------------------------


def rises_and_falls(best: int):
    """A reward whose evaluations are best after the step `best`."""
    calls = []

    def reward(completions, **columns):
        if len(completions) == 8:  # a step's
            return [float(i) for i in range(8)]
        calls.append(None)
        return [1.0 - abs(len(calls) - 1 - best)] * len(completions)

    return reward


def best_run(folder, best: int = 2, **settings):
    return runs.make_trainer(
        folder,
        **{
            "reward_funcs": rises_and_falls(best),
            "eval_dataset": runs.prompts(3),
            "eval_steps": 1,
            "max_steps": 5,
            "learning_rate": 1e-2,
            "load_best_model_at_end": True,
        }
        | settings,
    )


def test_the_best_model_is_what_is_left(tmp_path):
    run = tmp_path / "run"
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept[state.global_step] = runs.weights_of(trainer)

    trainer = best_run(run, callbacks=[Keep], save_steps=1, save_total_limit=2)
    trainer.train()
    state = trainer.state
    assert (state.best_metric, state.best_global_step) == (1.0, 2)
    assert Path(state.best_model_checkpoint) == run / "checkpoint-000002"
    assert [p.name for p in checkpoints_in(run)] == ["checkpoint-000002", "checkpoint-000005"]
    assert runs.same_bits(runs.weights_of(trainer), kept[2])
    assert not runs.same_bits(kept[2], kept[5])
    saved = AutoModelForCausalLM.from_pretrained(run).state_dict()
    assert all(saved[n].equal(w) for n, w in trainer.model.state_dict().items())


def test_the_best_one_is_kept_though_nobody_asked_for_checkpoints(tmp_path):
    trainer = best_run(tmp_path / "run", best=1)
    trainer.train()
    assert [p.name for p in checkpoints_in(tmp_path / "run")] == ["checkpoint-000001"]
    assert trainer.state.best_global_step == 1


def test_a_checkpoint_where_it_is_better_than_before(tmp_path):
    trainer = best_run(
        tmp_path / "run", best=3, load_best_model_at_end=False, save_strategy="best", save_steps=1
    )
    trainer.train()
    names = [p.name for p in checkpoints_in(tmp_path / "run")]
    assert names == ["checkpoint-000001", "checkpoint-000002", "checkpoint-000003"]


def test_less_may_be_better(tmp_path):
    trainer = best_run(
        tmp_path / "run",
        best=3,
        metric_for_best_model="eval_rewards/reward/mean",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.best_metric == -1.0
    assert SPOConfig(metric_for_best_model="completions/mean_length").greater_is_better is False
    with pytest.raises(ValueError, match=r"'rewards' is not evaluated .did you mean 'reward'"):
        best_run(tmp_path / "other", metric_for_best_model="rewards").train()


def test_early_stopping_stops_and_the_best_is_remembered_over_a_resume(tmp_path):
    run = tmp_path / "run"
    settings = {"save_steps": 1, "max_steps": 9, "best": 2}
    settings |= {"callbacks": [EarlyStoppingCallback(early_stopping_patience=2)]}
    trainer = best_run(run, **settings)
    assert trainer.train().global_step == 4  # 2 was the best, 3 and 4 are worse
    assert trainer.state.best_global_step == 2
    again = best_run(run, max_steps=6, eval_steps=0, best=-9)
    again.train(resume_from_checkpoint=run / "checkpoint-000004")
    assert again.state.best_global_step == 2
    assert Path(again.state.best_model_checkpoint) == run / "checkpoint-000002"


def test_best_needs_evaluations():
    with pytest.raises(ValueError, match="load_best_model_at_end needs evaluations"):
        SPOConfig(load_best_model_at_end=True, eval_strategy="no")


# --- names and paths -------------------------------------------------------------------------


def test_a_path_may_stand_wherever_a_path_is_meant(tmp_path):
    model, critic = tmp_path / "model", tmp_path / "critic"
    runs.folder(model)
    runs.folder(critic, runs.critic())
    trainer = runs.make_trainer(
        tmp_path / "run", model, value_model=critic, reward_funcs=[critic, runs.low_bytes]
    )
    trainer.train()
    args = SPOConfig(output_dir=tmp_path, value_model_path=critic, resume_from_checkpoint=model)
    assert (args.output_dir, args.value_model_path) == (str(tmp_path), str(critic))
    assert trainer.save_model(tmp_path / "copy") == tmp_path / "copy"
    assert math.isfinite(trainer.state.log_history[0]["rewards/critic/mean"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tokenizer", "no argument 'tokenizer' (did you mean 'processing_class'?)."),
        ("reward_func", "no argument 'reward_func' (did you mean 'reward_funcs'?)."),
        ("zzz", "no argument 'zzz'."),
    ],
)
def test_an_unknown_argument_names_the_nearest(name, hint):
    with pytest.raises(TypeError) as error:
        SPOTrainer("nowhere", runs.low_bytes, **{name: None})
    assert str(error.value) == f"SPOTrainer has {hint}"


# --- adapters --------------------------------------------------------------------------------


def test_a_critic_s_adapter_is_a_reward_model_and_anybody_s_classifier(tmp_path):
    base, ids = runs.folder(tmp_path / "base"), torch.tensor([[72, 101, 108]])
    trainer = runs.make_trainer(
        tmp_path / "run",
        base,
        peft_config=LoraConfig(**runs.LORA),
        value_model="policy",
        value_features="none",
        learning_rate=1e-2,
    )
    trainer.train()
    critic = tmp_path / "run" / "critic"
    loaded = [
        AutoPeftModelForSequenceClassification.from_pretrained(critic, num_labels=1),
        AutoModelForSequenceClassification.from_pretrained(critic, num_labels=1),
    ]
    values = [model(ids).logits.item() for model in loaded]
    assert abs(values[0]) > 1e-3
    judged = runs.make_trainer(tmp_path / "judged", base, reward_funcs=critic)
    values += judged.reward_functions[0].call(["He"], ["l"], [[108]])
    assert values == pytest.approx([values[0]] * 3, abs=1e-5)


def test_modules_are_trained_whole_beside_the_adapter(tmp_path):
    config = LoraConfig(**runs.LORA, modules_to_save=["embed_tokens"])
    trainer = runs.make_trainer(
        tmp_path / "run", peft_config=config, value_model="policy", beta=0.1, learning_rate=1e-2
    )
    trainer.train()
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    embeddings = saved["base_model.model.model.embed_tokens.weight"]
    assert not embeddings.equal(runs.policy().get_input_embeddings().weight)
    critic = load_file(tmp_path / "run" / "critic" / "adapter_model.safetensors")
    assert not [name for name in critic if "embed" in name], "they are the policy's alone"


def test_another_adapter_cannot_go_on_and_is_named(tmp_path):
    def trainer(rank):
        adapter = LoraConfig(**runs.LORA | {"r": rank})
        return runs.make_trainer(tmp_path / "run", peft_config=adapter, save_steps=2)

    trainer(4).train()
    with pytest.raises(ValueError, match=r"other settings: other adapters \(r=4 -> r=8\)\."):
        trainer(8).train(resume_from_checkpoint="latest")


# --- the schedule and the data ---------------------------------------------------------------


def test_a_schedule_takes_its_own_arguments(tmp_path):
    settings = {"lr_scheduler_type": "cosine_with_min_lr", "max_steps": 4}
    trainer = runs.make_trainer(
        tmp_path / "run", lr_scheduler_kwargs={"min_lr_rate": 0.5}, **settings
    )
    trainer.train()
    rates = [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e]
    assert rates[0] == 1e-3
    assert min(rates) > 0.5e-3
    with pytest.raises(ValueError, match=r"do not fit 'cosine_with_min_lr'.*min_rate"):
        runs.make_trainer(tmp_path / "x", lr_scheduler_kwargs={"min_rate": 0.5}, **settings)


def test_the_order_of_the_data_has_a_seed_of_its_own(tmp_path):
    def order(**settings):
        folder = tmp_path / str(sorted(settings.items()))
        runs.make_trainer(folder, max_steps=1, **settings)
        trainer = runs.make_trainer(folder, max_steps=1, **settings)
        return trainer.prompts.batch(1).index.tolist()

    assert order() == order(seed=1, data_seed=42) != order(seed=1)
