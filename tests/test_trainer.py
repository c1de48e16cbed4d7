"""SPOTrainer from Python: usage examples, what training changes, what it saves."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_runs as runs
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from tiny import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from spo import SPOConfig, SPOTrainer
from spo.advantages import assign_credit
from spo.networks import build
from spo.networks.network import Network, decoder
from spo.rollouts import load_rollouts

IDS = torch.tensor([[72, 101, 108, 108, 111]])


def lora(**overrides):
    return LoraConfig(**runs.LORA | overrides)


# --- usage examples, as a TRL user writes them -----------------------------------------------
@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A working folder where the examples' names lead to tiny stand-ins."""
    monkeypatch.chdir(tmp_path)
    runs.folder(Path("Qwen/Qwen2-0.5B-Instruct"))
    runs.folder(Path("path/to/reward/model"), runs.critic())
    tldr = Path("trl-lib/tldr")
    tldr.mkdir(parents=True)
    rows = {"prompt": ["SUBREDDIT: r/a\n\nTL;DR:", "POST: b\n\nTL;DR:"], "completion": ["x", "y"]}
    Dataset.from_dict(rows).to_json(tldr / "train.jsonl")
    torch.set_num_threads(1)


def reward_func(completions, **kwargs):
    return [float(len(set(completion))) for completion in completions]


def assert_trained(trainer, has_critic):
    run = Path("spo-model")
    lines = runs.metrics_of(run)
    assert [line["step"] for line in lines] == [1, 2]  # 2 prompts, one a step
    assert all(line["spo/mean_segments_per_sequence"] >= 1 for line in lines)
    assert all(("spo/value_loss" in line) == has_critic for line in lines)
    assert (run / "critic").exists() == (trainer.critic.network is not None) == has_critic
    AutoModelForCausalLM.from_pretrained(run)


def test_example_basic(hub):
    # Load dataset
    dataset = load_dataset("trl-lib/tldr", split="train")

    # Configure SPO
    config = SPOConfig(
        output_dir="spo-model",
        learning_rate=1e-5,
        entropy_percentile=0.05,  # 5% of tokens (highest entropy) are boundaries
        use_value_network=True,
        vf_coef=0.1,  # Value function loss coefficient
        gamma=1.0,  # Discount factor
        lam=0.95,  # GAE lambda
    )

    # Initialize trainer
    trainer = SPOTrainer(
        model="Qwen/Qwen2-0.5B-Instruct",
        reward_funcs=reward_func,
        args=config,
        train_dataset=dataset,
    )

    # Train
    trainer.train()
    assert_trained(trainer, has_critic=False)


def test_example_pretrained_value_model(hub):
    dataset = load_dataset("trl-lib/tldr", split="train")
    config = SPOConfig(output_dir="spo-model", learning_rate=1e-5)

    # Load pretrained value model (reward model checkpoint)
    value_model = AutoModelForSequenceClassification.from_pretrained(
        "path/to/reward/model", num_labels=1
    )

    trainer = SPOTrainer(
        model="Qwen/Qwen2-0.5B-Instruct",
        reward_funcs=reward_func,
        args=config,
        train_dataset=dataset,
        value_model=value_model,  # Use pretrained value model
    )
    trainer.train()
    assert_trained(trainer, has_critic=True)


def test_example_value_model_path(hub):
    config = SPOConfig(
        output_dir="spo-model",
        value_model_path="path/to/reward/model",  # Load value model from path
        entropy_percentile=0.05,  # 5% of tokens are boundaries
    )
    trainer = SPOTrainer(
        model="Qwen/Qwen2-0.5B-Instruct",
        reward_funcs=reward_func,
        args=config,
        train_dataset=load_dataset("trl-lib/tldr", split="train"),
    )
    trainer.train()
    assert_trained(trainer, has_critic=True)


def test_example_without_value_network(hub):
    config = SPOConfig(
        output_dir="spo-model",
        use_value_network=True,  # Will fall back if no model provided
        entropy_percentile=0.05,  # 5% of tokens are boundaries
    )

    # No value_model parameter - will use sequence-level advantages
    trainer = SPOTrainer(
        model="Qwen/Qwen2-0.5B-Instruct",
        reward_funcs=reward_func,
        args=config,
        train_dataset=load_dataset("trl-lib/tldr", split="train"),
    )
    trainer.train()
    assert_trained(trainer, has_critic=False)
    for saved in runs.rollouts_of("spo-model"):  # GRPO: (r − mean) / (std + 1e-4) of the group
        rewards = saved.rollouts.completion_rewards.astype(float)
        expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        first = saved.credit.token_advantages[:, 0]
        np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-6)


# --- what training changes -------------------------------------------------------------------
def changed(before: dict, after: dict) -> set[str]:
    """Which networks have other weights than before."""
    assert before.keys() == after.keys()
    return {k.split(".")[0] for k in before if not np.array_equal(before[k], after[k])}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"policy", "critic"}),
        ({"learning_rate": 0.0, "value_learning_rate": 1e-3}, {"critic"}),
        ({"value_learning_rate": 0.0}, {"policy"}),
        ({"value_warmup_steps": 2, "weight_decay": 0.1}, {"critic"}),
        ({"vf_coef": 0.0}, {"policy"}),
        ({"peft_config": lora()}, {"policy", "critic"}),
    ],
    ids=["both", "frozen policy", "frozen critic", "warm-up", "no value loss", "LoRA"],
)
def test_each_network_is_trained_when_it_should_be(settings, expected, tmp_path):
    peft_config = settings.get("peft_config")
    trainer = runs.make_trainer(tmp_path / "run", value_model="policy", **settings)
    before = runs.weights_of(trainer)
    trained = {id(p) for n in (trainer.policy, trainer.critic.network) for p in n.trainable}
    frozen = {
        n: p.detach().clone()
        for n, p in trainer.policy.model.named_parameters()
        if id(p) not in trained
    }
    assert bool(frozen) == (peft_config is not None)
    trainer.train()
    assert changed(before, runs.weights_of(trainer)) == expected
    now = dict(trainer.policy.model.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())


@pytest.mark.parametrize(("reward", "expected"), [(1.0, {"policy"}), (-1.0, set())])
def test_rewarded_completions_gain_likelihood_though_none_is_better(reward, expected, tmp_path):
    """Equal rewards in every group: GRPO's advantages are 0."""

    def same(completions, **kwargs):
        return [reward] * len(completions)

    trainer = runs.make_trainer(
        tmp_path / "run", reward_funcs=same, positive_nll_coef=0.5, max_steps=1
    )
    before = runs.weights_of(trainer)
    trainer.train()
    assert changed(before, runs.weights_of(trainer)) == expected
    (metrics,) = runs.metrics_of(tmp_path / "run")
    assert (metrics["spo/policy_loss"] > 0) == bool(expected)


def test_warm_up_ends(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(runs.weights_of(trainer))

    trainer = runs.make_trainer(
        tmp_path / "run", value_model=runs.critic(), value_warmup_steps=1, callbacks=[Watch]
    )
    start = runs.weights_of(trainer)
    trainer.train()
    assert changed(start, seen[0]) == {"critic"}
    assert changed(seen[0], seen[1]) == {"policy", "critic"}
    first, second = runs.metrics_of(tmp_path / "run")
    assert "spo/policy_loss" not in first
    assert "spo/policy_loss" in second


def test_learning_rates_are_separate_and_scheduled(tmp_path):
    runs.make_trainer(
        tmp_path / "run",
        value_model=runs.critic(),
        learning_rate=1e-3,
        value_learning_rate=4e-3,
        generation_batch_size=16,
        max_steps=2,
    ).train()
    lines = runs.metrics_of(tmp_path / "run")  # linear to 0 over 4 updates; the last one's rate
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.75e-3, 0.25e-3])
    assert [line["spo/value_learning_rate"] for line in lines] == pytest.approx([3e-3, 1e-3])


def naive_logprobs(model, rollouts) -> np.ndarray:
    """log softmax of the whole logits, one row at a time, the shift written out."""
    result = np.zeros(rollouts.token_ids.shape, np.float32)
    for row, (prompt, n) in enumerate(zip(rollouts.prompt_ids, rollouts.lengths, strict=True)):
        ids = torch.tensor([[*prompt, *rollouts.token_ids[row, :n]]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        for t in range(n):
            result[row, t] = logprobs[len(prompt) + t - 1, rollouts.token_ids[row, t]]
    return result


@pytest.mark.parametrize("kind", ["full", "new adapter", "tuned adapter"])
def test_the_reference_stays_the_initial_policy(kind, tmp_path):
    def initial():
        torch.manual_seed(0)
        if kind == "tuned adapter":
            model = build.get_peft_model(runs.policy(), lora(init_lora_weights=False))
            return model
        return runs.policy()

    trainer = runs.make_trainer(
        tmp_path / "run",
        initial().train(False),
        peft_config=lora() if kind == "new adapter" else None,
        value_model="policy",
        beta=0.1,
        learning_rate=1e-2,
        max_steps=3,
    )
    trainer.train()
    frozen = initial().eval()
    for step, saved in enumerate(runs.rollouts_of(tmp_path / "run")):
        rollouts = saved.rollouts
        expected = naive_logprobs(frozen, rollouts)
        np.testing.assert_allclose(rollouts.token_logprobs_ref, expected, atol=2e-4)
        moved = np.abs(rollouts.token_logprobs_old - expected).max()
        assert moved < 2e-4 if step == 0 else moved > 1e-2
    assert runs.metrics_of(tmp_path / "run")[-1]["kl"] > 1e-4


def test_values_are_read_before_each_token(tmp_path):
    """Against the sequence classifier itself, given the prompt and the tokens before t."""
    trainer = runs.make_trainer(tmp_path / "run", value_model=runs.critic(), max_steps=1)
    trainer.train()
    rollouts = runs.rollouts_of(tmp_path / "run")[0].rollouts
    classifier = runs.critic()
    for row, n in enumerate(rollouts.lengths):
        for t in range(n):
            ids = torch.tensor([[*rollouts.prompt_ids[row], *rollouts.token_ids[row, :t]]])
            with torch.no_grad():
                expected = classifier(ids).logits.item()
            assert rollouts.token_values[row, t] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("critic", [None, "policy"])
def test_the_credit_on_disk_is_what_assign_credit_gives(critic, tmp_path):
    runs.make_trainer(
        tmp_path / "run", value_model=critic, beta=0.1, kl_in_reward=critic is not None
    ).train()
    for saved in runs.rollouts_of(tmp_path / "run"):
        again = assign_credit(saved.rollouts, SPOConfig(**saved.config))
        for name in ("segment_ids", "token_advantages", "token_returns"):
            np.testing.assert_array_equal(getattr(saved.credit, name), getattr(again, name))
        assert saved.credit.entropy_threshold == again.entropy_threshold


def test_a_zero_head_makes_the_first_step_reinforce(tmp_path):
    """V = 0: every advantage is the completion's reward."""
    runs.make_trainer(
        tmp_path / "run", value_model="policy", max_steps=1, normalize_advantages=False, lam=1.0
    ).train()
    saved = runs.rollouts_of(tmp_path / "run")[0]
    assert not saved.rollouts.token_values.any()
    mask = saved.rollouts.completion_mask
    expected = saved.rollouts.completion_rewards[:, None] * mask
    np.testing.assert_allclose(saved.credit.token_advantages, expected, atol=1e-6)


# --- rows that take no part ------------------------------------------------------------------
def train_on(completions, rewards, output_dir, **settings):
    """Train on given completions (the first rows of 8); returns the weights."""

    def complete(prompts, trainer):
        ids = [trainer.processing_class(text)["input_ids"] for text in prompts]
        return {"prompt_ids": ids, "completion_ids": completions}

    trainer = runs.make_trainer(
        output_dir,
        value_model=runs.critic(),
        rollout_func=complete,
        reward_funcs=lambda completions, **_: rewards,
        max_steps=1,
        **settings,
    )
    trainer.train()
    return runs.weights_of(trainer)


ENDED = [[65 + i, 70 + i, 258] for i in range(8)]
REWARDS = [1.0, 0.0, 2.0, 0.5, 3.0, 1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("row", "rewards", "settings"),
    [
        ([9, 9, 258], [*REWARDS[:3], None, *REWARDS[4:]], {}),
        ([99, 99, 99], REWARDS, {"mask_truncated_completions": True}),
    ],
    ids=["unscorable", "truncated"],
)
def test_a_row_out_of_the_loss_changes_nothing(row, rewards, settings, tmp_path):
    other = [row[0] + 1, row[1] + 2, row[2]]  # as long, and ended or not as the first
    weights = [
        train_on([*ENDED[:3], chosen, *ENDED[4:]], rewards, tmp_path / str(i), **settings)
        for i, chosen in enumerate((row, other))
    ]
    assert runs.same_bits(*weights)
    saved = runs.rollouts_of(tmp_path / "0")[0]
    assert not saved.credit.token_advantages[3].any()
    assert saved.credit.token_advantages[4].any()
    assert np.isnan(saved.rollouts.completion_rewards[3]) == (rewards[3] is None)
    plain = train_on(ENDED, REWARDS, tmp_path / "plain")
    assert not runs.same_bits(weights[0], plain)


def test_truncated_rows_take_part_unless_masked(tmp_path):
    rows = [[99, 99, 99], *ENDED[1:]]
    masked = train_on(rows, REWARDS, tmp_path / "masked", mask_truncated_completions=True)
    assert not runs.same_bits(masked, train_on(rows, REWARDS, tmp_path / "kept"))
    assert runs.metrics_of(tmp_path / "kept")[0]["completions/clipped_ratio"] == 1 / 8


def test_one_completion_a_prompt_is_enough_with_a_critic(tmp_path):
    runs.make_trainer(tmp_path / "run", value_model="policy", num_generations=1).train()
    assert len({*runs.rollouts_of(tmp_path / "run")[0].rollouts.prompts}) == 8


# --- callbacks, rollout functions, rewards, chat ---------------------------------------------
def test_callbacks_are_called_and_listened_to(tmp_path):
    class Recorder(TrainerCallback):
        def __init__(self):
            self.events = []

        def on_train_begin(self, args, state, control, **kwargs):
            self.events.append(("begin", state.global_step, state.max_steps))

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.events.append(("log", logs.get("reward")))

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            self.events.append(("evaluate", metrics["eval_reward"]))

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.events.append(("step", state.global_step, state.epoch))
            assert model is trainer.policy.model
            control.should_save |= state.global_step == 1  # once asked for, once done
            control.should_training_stop |= state.global_step == 2

        def on_save(self, args, state, control, **kwargs):
            self.events.append(("save", state.global_step))

        def on_train_end(self, args, state, control, **kwargs):
            self.events.append(("end", state.global_step))

    recorder = Recorder()
    run = tmp_path / "run"
    trainer = runs.make_trainer(
        run, callbacks=[recorder], max_steps=5, eval_dataset=runs.prompts(2)
    )
    trainer.train()
    lines = runs.metrics_of(run)
    evaluation, rewards = lines[0]["eval/reward"], [line["reward"] for line in lines[1:-1]]
    assert recorder.events == [
        ("begin", 0, 5),
        ("log", None),  # of the evaluation
        ("evaluate", evaluation),
        ("step", 1, 0.25),
        ("log", pytest.approx(rewards[0])),
        ("save", 1),
        ("step", 2, 0.5),
        ("log", pytest.approx(rewards[1])),
        ("log", None),
        ("evaluate", lines[-1]["eval/reward"]),  # stopped early: this step was the last
        ("log", None),  # how long it took
        ("end", 2),
    ]
    assert (run / "checkpoint-000001").exists()


def test_a_rollout_function_needs_a_token_before_the_first_one(tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run",
        rollout_func=lambda prompts, trainer: {
            "prompt_ids": [[] for _ in prompts],
            "completion_ids": [[1, 258] for _ in prompts],
        },
    )
    with pytest.raises(ValueError, match="empty prompt_ids"):
        trainer.train()


def test_a_rollout_function_samples_instead(tmp_path):
    seen = []

    def complete(prompts, trainer):
        ids = [trainer.processing_class(text)["input_ids"] for text in prompts]
        return {
            "prompt_ids": [[257, *row] for row in ids],
            "completion_ids": [[*row[-2:], 258] for row in ids],
            "logprobs": [[0.0, 0.0, 0.0] for row in ids],
            "tries": list(range(len(ids))),
        }

    def reward(prompts, completions, completion_ids, tries, **columns):
        seen.append((completions, tries))
        return [float(x) for x in tries]

    trainer = runs.make_trainer(
        tmp_path / "run", rollout_func=complete, reward_funcs=reward, max_steps=1
    )
    trainer.train()
    rollouts = runs.rollouts_of(tmp_path / "run")[0].rollouts
    assert seen == [([p[-2:] for p in rollouts.prompts], list(range(8)))]
    assert all(ids[0] == 257 for ids in rollouts.prompt_ids)
    assert not rollouts.truncated.any()
    # scored by the policy as it was, not by what the function says
    expected = naive_logprobs(runs.policy(), rollouts)
    np.testing.assert_allclose(rollouts.token_logprobs_old, expected, atol=2e-4)


def test_rewards_of_every_kind_are_weighted_and_reported(tmp_path):
    async def waited(completions, **kwargs):
        await asyncio.sleep(0)
        return [2.0] * len(completions)

    def dense(completion_ids, level, **kwargs):
        return [[x] * len(ids) for ids, x in zip(completion_ids, level, strict=True)]

    data = Dataset.from_dict({"prompt": ["a", "b"], "level": [0.5, 1.5]})
    runs.make_trainer(
        tmp_path / "run",
        reward_funcs=[waited, dense, "soft_overlong"],
        reward_weights=[1.0, 10.0, 0.0],
        train_dataset=data,
        max_steps=1,
    ).train()
    rollouts = runs.rollouts_of(tmp_path / "run")[0].rollouts
    assert rollouts.reward_names == ["waited", "dense", "soft_overlong"]
    level = np.array([data["level"][i] for i in rollouts.prompt_index])
    np.testing.assert_allclose(rollouts.completion_rewards, 2 + 10 * level * rollouts.lengths)
    line = runs.metrics_of(tmp_path / "run")[0]
    assert line["rewards/waited/mean"] == 2.0
    assert line["rewards/waited/std"] == 0.0


def test_chat_prompts_reach_model_and_reward_in_their_forms(tmp_path):
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.append((prompts, completions))
        return [float(len(completion[0]["content"])) for completion in completions]

    chats = [[{"role": "user", "content": text}] for text in ("hi", "you")]
    runs.make_trainer(
        tmp_path / "run",
        processing_class=byte_tokenizer(chat_template=True),
        train_dataset=Dataset.from_dict({"prompt": chats}),
        reward_funcs=reward,
        shuffle_dataset=False,
        max_steps=1,
    ).train()
    rollouts = runs.rollouts_of(tmp_path / "run")[0].rollouts
    assert rollouts.prompts[0] == "<bos><user>hi<eos><assistant>"
    ((prompts, completions),) = seen
    assert prompts == [chats[0]] * 4 + [chats[1]] * 4
    assert [c[0]["content"] for c in completions] == rollouts.completions
    assert all(c[0]["role"] == "assistant" for c in completions)


# --- precision, output -----------------------------------------------------------------------
def test_bfloat16_autocast_keeps_float32_weights_after_a_float32_trainer(tmp_path):
    runs.make_trainer(tmp_path / "first")
    trainer = runs.make_trainer(tmp_path / "run", value_model=runs.critic(), bf16=True)
    before = runs.weights_of(trainer)
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert changed(before, runs.weights_of(trainer)) == {"policy", "critic"}
    assert {p.dtype for p in trainer.policy.trainable} == {torch.float32}
    saved = runs.rollouts_of(tmp_path / "run")[0].rollouts
    rounding = np.abs(saved.token_logprobs_old - naive_logprobs(runs.policy(), saved)).max()
    assert 1e-4 < rounding < 0.5, "not computed in bfloat16"


def test_tensorboard_holds_the_logged_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs.make_trainer(tmp_path / "run", report_to="tensorboard", run_name="tiny").train()
    scalars = EventAccumulator(str(tmp_path / "run" / "tiny")).Reload()
    expected = [line["reward"] for line in runs.metrics_of(tmp_path / "run")]
    assert [event.value for event in scalars.Scalars("reward")] == pytest.approx(expected)


# --- it learns -------------------------------------------------------------------------------
@pytest.mark.parametrize("critic", ["policy", None])
def test_reward_rises(critic, tmp_path):
    """Low bytes pay: from half of the tokens to nine in ten within 20 steps."""
    runs.make_trainer(
        tmp_path / "run",
        value_model=critic,
        per_device_train_batch_size=32,
        max_steps=20,
        max_completion_length=6,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
    ).train()
    rewards = [line["reward"] for line in runs.metrics_of(tmp_path / "run")]
    assert rewards[0] < 0.65
    assert np.mean(rewards[-3:]) > 0.85


def test_the_critic_learns_predictable_returns(tmp_path):
    """The reward stands in the prompt."""
    data = Dataset.from_dict({"prompt": ["rich", "poor"], "pay": [1.0, -1.0]})
    runs.make_trainer(
        tmp_path / "run",
        value_model="policy",
        train_dataset=data,
        reward_funcs=lambda pay, **_: pay,
        learning_rate=0.0,
        value_learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_steps=15,
    ).train()
    lines = runs.metrics_of(tmp_path / "run")
    assert lines[0]["spo/value_loss"] == pytest.approx(0.5)  # V = 0, returns ±1
    assert lines[-1]["spo/value_loss"] < 0.05
    assert lines[-1]["spo/explained_variance"] > 0.9


# --- what is saved ---------------------------------------------------------------------------
@torch.no_grad()
def output(network: Network) -> torch.Tensor:
    network.train(False)
    with network.active():
        return network.head(decoder(network.model)(input_ids=IDS).last_hidden_state)


def test_full_models_load_again(tmp_path):
    run = tmp_path / "run"
    trainer = runs.make_trainer(run, value_model=runs.critic(), learning_rate=1e-2)
    trainer.train()
    policy = AutoModelForCausalLM.from_pretrained(run)
    torch.testing.assert_close(policy(IDS).logits, output(trainer.policy))
    assert (policy(IDS).logits - runs.policy()(IDS).logits).abs().max() > 0.01
    assert policy.generation_config.eos_token_id == [258, *range(40)]
    assert AutoTokenizer.from_pretrained(run).get_vocab() == byte_tokenizer().get_vocab()

    critic = AutoModelForSequenceClassification.from_pretrained(run / "critic")
    assert critic.config.num_labels == 1
    values = output(trainer.critic.network)
    torch.testing.assert_close(critic(IDS).logits[0], values[0, -1])
    again = runs.make_trainer(
        tmp_path / "again", str(run), value_model_path=str(run / "critic"), max_steps=1
    )
    torch.testing.assert_close(output(again.critic.network), values)
    torch.testing.assert_close(output(again.policy), output(trainer.policy))


def test_adapters_load_again(tmp_path):
    """The policy's; the critic's stands in test_models.py."""
    base, run = runs.folder(tmp_path / "base"), tmp_path / "run"
    trainer = runs.make_trainer(
        run, base, peft_config=lora(), value_model="policy", learning_rate=1e-2
    )
    trainer.train()
    logits = output(trainer.policy)
    assert not (run / "model.safetensors").exists()
    loaded = AutoPeftModelForCausalLM.from_pretrained(run)
    torch.testing.assert_close(loaded(IDS).logits, logits)
    by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run)
    torch.testing.assert_close(by_hand(IDS).logits, logits)
    assert (logits - runs.policy()(IDS).logits).abs().max() > 0.01
    again = runs.make_trainer(tmp_path / "again", str(run), value_model=str(run / "critic"))
    torch.testing.assert_close(output(again.policy), logits)
    torch.testing.assert_close(output(again.critic.network), output(trainer.critic.network))


def test_the_card_says_what_was_done(tmp_path):
    base = runs.folder(tmp_path / "base")
    trainer = runs.make_trainer(
        tmp_path / "run", base, value_model="policy", eval_dataset=runs.prompts(2)
    )
    trainer.train()
    card = (tmp_path / "run" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert "base_model" not in front, "the hub refuses a base_model that is a local folder"
    assert "for 2 steps" in body
    assert "learning_rate: 0.001" in body
    assert "2505.23564" in body
    first, last = (line for line in runs.metrics_of(tmp_path / "run") if "eval/reward" in line)
    for line in (first, last):
        assert f"| {line['step']} | {line['eval/completions/mean_length']:.3f}" in body
    config = json.loads((tmp_path / "run" / "spo_config.json").read_text())
    assert SPOConfig(**config) == trainer.args


def test_push_to_hub_uploads_the_model_and_not_the_run(tmp_path, monkeypatch):
    calls = []

    class Repo:
        repo_id = "someone/tiny-spo"

    def create_repo(self, repo_id, **kwargs):
        calls.append(("create", repo_id, kwargs))
        return Repo

    def upload_folder(self, **kwargs):
        calls.append(("upload", kwargs))
        return "https://hub/commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    run = tmp_path / "run"
    trainer = runs.make_trainer(
        run,
        max_steps=1,
        save_steps=1,
        push_to_hub=True,
        hub_model_id="tiny-spo",
        hub_private_repo=True,
    )
    trainer.train()
    (_, name, options), (_, upload) = calls
    assert name == "tiny-spo"
    assert options == {"private": True, "exist_ok": True}
    assert upload["repo_id"] == "someone/tiny-spo"
    from huggingface_hub.utils import filter_repo_objects

    files = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    sent = set(filter_repo_objects(files, ignore_patterns=upload["ignore_patterns"]))
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= sent
    assert not [path for path in sent if "checkpoint" in path or "rollouts" in path]
    assert any("checkpoint" in path for path in files)
    assert trainer.push_to_hub("again") == "https://hub/commit"
    assert calls[-1][1]["commit_message"] == "again"


def test_evaluation_is_the_same_whenever_it_is_asked_for(tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run",
        eval_dataset=runs.prompts(5),
        eval_temperature=1.0,
        per_device_eval_batch_size=2,
    )
    first = trainer.evaluate()
    assert trainer.evaluate() == first
    other = trainer.evaluate(runs.prompts(3))
    assert other != first
    with pytest.raises(ValueError, match="no eval_dataset"):
        runs.make_trainer(tmp_path / "none").evaluate()


def test_rollouts_are_read_by_datasets(tmp_path):
    runs.make_trainer(tmp_path / "run", value_model="policy").train()
    files = str(tmp_path / "run" / "rollouts" / "*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train")
    assert len(rows) == 16
    saved = load_rollouts(tmp_path / "run" / "rollouts" / "step-000001.parquet")
    assert (
        rows[0]["token_values"]
        == saved.rollouts.token_values[0, : len(rows[0]["token_ids"])].tolist()
    )
