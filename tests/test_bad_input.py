"""Whatever is wrong is one sentence that says what to do, and nothing is lost."""

import math
import re

import pytest
import tiny_runs as runs
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import EOS, byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import BitsAndBytesConfig, TrainerCallback

from spo import SPOConfig
from spo.errors import NonFiniteLossError
from spo.rewards.functions import RewardError
from spo.rollouts import load_rollouts


def assert_one_sentence(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 400


def refused(kind=ValueError, match=None, **given) -> str:
    """The message of the error that the constructor raises."""
    with pytest.raises(kind, match=match) as caught:
        runs.make_trainer(given.pop("output_dir"), **given)
    assert_one_sentence(caught.value)
    return str(caught.value)


# --- before any work -------------------------------------------------------------------------
def without_tokens(*names):
    tokenizer = byte_tokenizer()
    for name in names:
        setattr(tokenizer, name, None)
    return tokenizer


CHAT = Dataset.from_dict({"prompt": [[{"role": "user", "content": "hi"}]]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "no/such-model"}, "No model at 'no/such-model'.*check the spelling"),
        (
            {"model": "no/such-model", "processing_class": None},
            "at 'no/such-model'.*check the spelling",
        ),
        ({"train_dataset": None}, "train_dataset is missing"),
        ({"train_dataset": Dataset.from_dict({"prompt": []})}, "dataset is empty"),
        ({"train_dataset": Dataset.from_dict({"promt": ["a"]})}, "did you mean 'promt'"),
        ({"train_dataset": CHAT}, "no chat template"),
        ({"processing_class": without_tokens("pad_token", "eos_token")}, "neither a pad nor"),
        ({"model": tiny_llama(), "processing_class": None}, "pass processing_class"),
        ({"num_generations": 1}, "set it to 2 or more, or give a critic"),
        ({"num_generations": 1, "value_model": "policy", "use_value_network": False}, "2 or more"),
        ({"reward_funcs": "reasoning_gim"}, "did you mean 'reasoning_gym'"),
        ({"reward_funcs": []}, "No reward given"),
        ({"reward_weights": [1.0, 2.0]}, "2 entries for 1 reward function"),
        ({"value_model": tiny_reward_model(num_labels=2)}, "2 labels, a critic has 1"),
        ({"value_model": tiny_reward_model(vocab_size=258)}, "knows 258 tokens .* has 259"),
        ({"value_model": "no/such-critic"}, "No value model at 'no/such-critic'"),
        (
            {"peft_config": LoraConfig(**runs.LORA | {"target_modules": ["qkv"]})},
            r"\['qkv'\] match no layer of LlamaForCausalLM",
        ),
        ({"optim": "adam"}, "adamw_torch"),
    ],
)
def test_what_the_constructor_refuses(given, message, tmp_path):
    refused(match=message, output_dir=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_missing_pad_token_is_the_end_token(tmp_path):
    trainer = runs.make_trainer(tmp_path / "run", processing_class=without_tokens("pad_token"))
    assert trainer.processing_class.pad_token_id == EOS
    trainer.train()


def test_a_critic_with_another_tokenizer_is_refused(tmp_path):
    path = runs.folder(tmp_path / "critic", runs.critic())
    other = byte_tokenizer()
    other.add_tokens(["word"])
    other.save_pretrained(path)
    refused(
        match="another tokenizer than the policy", output_dir=tmp_path / "run", value_model=path
    )


def test_quantised_weights_are_not_fully_fine_tuned(tmp_path):
    given = {"value_load_in_4bit": True, "value_model_path": "somewhere"}
    with pytest.raises(ValueError, match="add value_use_peft") as caught:
        SPOConfig(**given)
    assert_one_sentence(caught.value)
    pytest.importorskip("bitsandbytes")
    refused(
        match="Quantised weights cannot be trained",
        output_dir=tmp_path / "run",
        model=runs.folder(tmp_path / "model"),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
    )


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_entropy_percentile_is_a_fraction(value):
    with pytest.raises(ValueError, match=r"entropy_percentile=.* must lie in \[0, 1\]") as caught:
        SPOConfig(entropy_percentile=value)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    "sizes",
    [
        {"per_device_train_batch_size": 6},
        {"generation_batch_size": 12},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
        {"generation_batch_size": 4},
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_sizes_that_do_not_divide_are_told_which_would(sizes, tmp_path):
    message = refused(output_dir=tmp_path / "run", **sizes)
    for number in re.search(r"set generation_batch_size to ([\d or]+)\.", message)[1].split(" or "):
        fitting = {k: v for k, v in sizes.items() if k != "steps_per_generation"}
        runs.make_trainer(tmp_path / number, **fitting | {"generation_batch_size": int(number)})


# --- output folders --------------------------------------------------------------------------
def test_the_folder_of_another_run_is_left_alone(tmp_path):
    run = tmp_path / "run"
    runs.make_trainer(run, max_steps=1).train()
    (run / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(match="holds another run .*overwrite_output_dir", output_dir=run)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    runs.make_trainer(run, max_steps=2, overwrite_output_dir=True).train()
    assert [line["step"] for line in runs.metrics_of(run)] == [1, 2]
    assert (run / "notes.txt").read_text() == "mine"


def test_the_folder_of_a_run_with_checkpoints_is_left_alone_by_train(tmp_path):
    """The constructor cannot know yet whether train() will resume."""
    run = tmp_path / "run"
    runs.make_trainer(run, max_steps=1, save_steps=1).train()
    metrics = (run / "metrics.jsonl").read_bytes()
    again = runs.make_trainer(run)
    with pytest.raises(ValueError, match="holds another run") as caught:
        again.train()
    assert_one_sentence(caught.value)
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused(match="is a file; name a folder", output_dir=tmp_path / "file")


# --- while training --------------------------------------------------------------------------
def at_step_two(first, later):
    """A reward function that goes wrong in the second step."""
    calls = []

    def reward(completions, **kwargs):
        calls.append(None)
        return (first if len(calls) == 1 else later)(completions)

    return reward


def raises(completions):
    raise KeyError("answer")


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (raises, "'reward' raised KeyError: 'answer'"),
        (lambda completions: [1.0], "returned 1 rewards for 8 completions"),
        (lambda completions: [math.nan] * 8, "returned nan for row 0"),
        (lambda completions: None, "returned NoneType"),
    ],
    ids=["raises", "length", "nan", "nothing"],
)
def test_a_reward_that_goes_wrong_costs_no_finished_step(later, message, tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run", reward_funcs=at_step_two(runs_first, later), save_steps=1
    )
    with pytest.raises(RewardError, match=message) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert_resumable(trainer, step=1)


def runs_first(completions):
    return [float(len(c)) for c in completions]


def unscorable(completions, **columns):
    return [None] * len(completions)


def test_a_batch_without_a_single_reward_changes_nothing(tmp_path):
    """One answer that cannot be parsed is no reason to stop."""
    weights = []

    def reward(completions, **columns):
        weights.append(runs.weights_of(trainer))
        return runs_first(completions) if len(weights) == 1 else unscorable(completions)

    trainer = runs.make_trainer(tmp_path / "run", reward_funcs=reward)
    with pytest.warns(UserWarning, match="Step 2: no completion could be scored"):
        trainer.train()
    at_start, at_step_two = weights
    assert not runs.same_bits(at_start, at_step_two)
    assert runs.same_bits(runs.weights_of(trainer), at_step_two)


@pytest.mark.parametrize("held_out", [False, True])
def test_rewards_that_never_score_anything_stop_the_run(held_out, tmp_path):
    eval_dataset = runs.prompts(3) if held_out else None
    trainer = runs.make_trainer(
        tmp_path / "run", reward_funcs=unscorable, eval_dataset=eval_dataset
    )
    count = 3 if held_out else 8
    message = f"'unscorable' returned None for all {count} completions: check that the dataset"
    with pytest.raises(RewardError, match=message):
        trainer.train()


def assert_resumable(trainer, step):
    """The checkpoint holds what the trainer holds: nothing was updated since."""
    weights = runs.weights_of(trainer)
    run = trainer.output_dir
    has_critic = trainer.critic.network is not None
    again = runs.make_trainer(
        run,
        value_model=runs.critic() if has_critic else None,
        save_steps=1,
        resume_from_checkpoint="latest",
        max_steps=step,
    )
    again.train()
    assert again.state.global_step == step
    assert runs.same_bits(weights, runs.weights_of(again))
    assert [line["step"] for line in runs.metrics_of(run)] == [*range(1, step + 1)]


def test_empty_completions_stop_the_run(tmp_path):
    def silent(prompts, trainer):
        ids = [trainer.processing_class(text)["input_ids"] for text in prompts]
        return {"prompt_ids": ids, "completion_ids": [[] for _ in ids]}

    trainer = runs.make_trainer(tmp_path / "run", rollout_func=silent, reward_funcs=runs.distinct)
    with pytest.raises(ValueError, match="Step 1: every completion is empty") as caught:
        trainer.train()
    assert_one_sentence(caught.value)


def test_a_rollout_function_must_answer_every_prompt(tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run",
        rollout_func=lambda prompts, trainer: {"prompt_ids": [[1]], "completion_ids": [[2]]},
    )
    with pytest.raises(ValueError, match="got 8 prompts and returned 1 prompt_ids") as caught:
        trainer.train()
    assert_one_sentence(caught.value)


class Poison(TrainerCallback):
    """Breaks a weight after the first step, once that step's checkpoint is written."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.head.weight.data[0, 0] = math.nan


def networks_of(trainer):
    return {"policy": trainer.policy, "critic": trainer.critic.network}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("policy", "Step 2: token_entropies of 8 completions is not finite"),
        ("critic", "Step 2: token_values of 8 completions is not finite"),
    ],
)
def test_networks_that_are_not_finite_update_nothing(network, message, tmp_path):
    poison = Poison()
    trainer = runs.make_trainer(
        tmp_path / "run", value_model=runs.critic(), save_steps=1, callbacks=[poison]
    )
    poison.head = networks_of(trainer)[network].head
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        trainer.train()
    path = re.search(r"the rows are in (\S+) and", str(caught.value))[1]
    rows = load_rollouts(path).rollouts
    assert rows.step == 2
    assert len(rows) == 8  # whole prompt groups
    assert "last checkpoint is intact" in str(caught.value)
    poison.head.weight.data[0, 0] = 0.0
    weights = runs.weights_of(trainer)
    again = runs.make_trainer(
        trainer.output_dir,
        value_model=runs.critic(),
        resume_from_checkpoint="latest",
        max_steps=1,
    )
    again.train()
    networks_of(again)[network].head.weight.data[0, 0] = 0.0
    assert runs.same_bits(weights, runs.weights_of(again))


def test_a_critic_loss_that_overflows_undoes_the_policys_pass_too(tmp_path):
    """A huge reward: advantages are normalised, so that only ½ (V − R)² is infinite."""
    huge = at_step_two(runs_first, lambda completions: [1e30, *[0.0] * 7])
    trainer = runs.make_trainer(
        tmp_path / "run", reward_funcs=huge, value_model=runs.critic(), save_steps=1
    )
    with pytest.raises(NonFiniteLossError, match="Step 2: the loss is inf"):
        trainer.train()
    assert_resumable(trainer, step=1)


def test_a_gradient_that_is_not_finite_updates_nothing(tmp_path):
    """The loss may be finite where its gradient is not."""

    class Break(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            weight = trainer.policy.trainable[0]
            weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf))

    trainer = runs.make_trainer(tmp_path / "run", save_steps=1, callbacks=[Break])
    with pytest.raises(NonFiniteLossError, match="Step 2: the gradient norm is"):
        trainer.train()
    assert_resumable(trainer, step=1)


def test_an_empty_eval_dataset_is_no_evaluation_or_an_error(tmp_path):
    empty = Dataset.from_dict({"prompt": []})
    message = refused(output_dir=tmp_path / "run", eval_dataset=empty)
    assert "empty" in message


def test_messages_show_the_numbers_that_are_wrong(tmp_path):
    message = refused(output_dir=tmp_path / "run", per_device_train_batch_size=6)
    assert "6 completions" in message
    assert "num_generations=4" in message
