"""What a reward function does to itself, to its inputs or to the clock stays its own affair."""

import asyncio
import signal
import sys
import time

import numpy as np
import pytest
import tiny_runs as runs
from datasets import Dataset
from tiny import EOS, byte_tokenizer

from spo.rewards.calling import RewardError, RewardFunction, call_functions


def call(*functions, timeout=None, **columns):
    rows = {"prompts": ["p"], "completions": ["c"], "completion_ids": [[1, 2]]}
    named = [RewardFunction(function.__name__, function) for function in functions]
    return call_functions(named, rows, columns, timeout)


# --- inputs ----------------------------------------------------------------------------------
def change_everything(value):
    """Overwrite what can be reached, all the way down."""
    if isinstance(value, list):
        for item in value:
            change_everything(item)
        value[:] = [65 for _ in value]
    elif isinstance(value, dict):
        for item in value.values():
            change_everything(item)
        value.clear()
    elif isinstance(value, np.ndarray):
        value[:] = 0


def vandal(prompts, completions, completion_ids, **columns):
    rewards = [float(len(ids)) for ids in completion_ids]
    for value in (prompts, completions, completion_ids, *columns.values()):
        change_everything(value)
    return rewards


def gentle(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def test_a_reward_that_overwrites_its_inputs_changes_neither_data_nor_training(tmp_path):
    def train(name, *rewards):
        dataset = runs.prompts().add_column("answer", [[str(i)] for i in range(8)])
        trainer = runs.make_trainer(
            tmp_path / name, train_dataset=dataset, reward_funcs=list(rewards)
        )
        trainer.train()
        return runs.weights_of(trainer), runs.rollouts_of(tmp_path / name)

    (calm, expected), (weights, found) = train("a", gentle, gentle), train("b", vandal, gentle)
    assert runs.same_bits(calm, weights)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.rollouts.token_ids, b.rollouts.token_ids)
        assert a.rollouts.completions == b.rollouts.completions
        np.testing.assert_array_equal(
            a.rollouts.rewards_by_function, b.rollouts.rewards_by_function
        )


def test_every_kind_of_column_is_a_copy():
    def check(**given):
        assert given["chat"] == [[{"role": "user", "content": ["hi"]}]]
        assert given["array"][0].tolist() == [1, 2]
        return vandal(**given)

    columns = {"chat": [[{"role": "user", "content": ["hi"]}]], "array": [np.array([1, 2])]}
    assert call(check, check, **columns) == [[2.0], [2.0]]


def test_a_rollout_function_that_talks_on_in_its_prompts_does_not_change_them(tmp_path):
    """Agent loops append their turns to the messages they got."""
    seen = []

    def agent(prompts, trainer):
        ids = []
        for messages in prompts:
            text = trainer.processing_class.apply_chat_template(messages, tokenize=False)
            ids.append(trainer.processing_class(text)["input_ids"])
            messages[0]["content"] = "something else"
            messages.append({"role": "assistant", "content": "I look it up."})
        return {"prompt_ids": ids, "completion_ids": [[65, 66, EOS] for _ in ids]}

    def reward(prompts, **columns):
        seen.extend(prompts)
        return [float(i) for i in range(len(prompts))]

    messages = [{"role": "user", "content": "hi"}]
    runs.make_trainer(
        tmp_path / "run",
        train_dataset=Dataset.from_dict({"prompt": [messages] * 4}),
        processing_class=byte_tokenizer(chat_template=True),
        rollout_func=agent,
        reward_funcs=reward,
    ).train()
    assert seen == [messages] * 16


# --- ends ------------------------------------------------------------------------------------
def leaves(**given):
    sys.exit(3)


async def leaves_later(**given):
    await asyncio.sleep(0)
    sys.exit(3)


async def a_task_of_it_leaves(**given):
    async def task():
        sys.exit(3)

    background = asyncio.create_task(task())
    await asyncio.sleep(30)
    return background


async def stops_the_loop(**given):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(30)


async def scores(**given):
    await asyncio.sleep(0)
    return [1.0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("leave", [leaves, leaves_later, a_task_of_it_leaves, stops_the_loop])
def test_a_reward_that_leaves_is_an_error_with_its_name(leave):
    with pytest.raises(RewardError, match=f"'{leave.__name__}' (raised SystemExit: 3|ended)"):
        call(scores, leave)
    assert call(scores) == [[1.0]], "the next batch is scored"


# --- time ------------------------------------------------------------------------------------
def sleeps(**given):
    time.sleep(30)


def computes(**given):
    while True:
        pass


def catches_everything(**given):
    while True:
        try:
            time.sleep(30)
        except Exception:
            continue


async def awaits(**given):
    await asyncio.sleep(30)


async def blocks_the_loop(**given):
    time.sleep(5)


@pytest.mark.parametrize("late", [sleeps, computes, catches_everything, awaits, blocks_the_loop])
def test_a_reward_that_takes_too_long_is_an_error_with_its_name(late):
    begun = time.monotonic()
    with pytest.raises(
        RewardError, match=rf"'{late.__name__}' took longer than reward_timeout=0\.3"
    ):
        call(scores, late, timeout=0.3)
    assert time.monotonic() - begun < 3
    assert call(scores, timeout=5) == [[1.0]]


def test_a_reward_in_time_is_left_alone_with_its_own_alarm():
    """math_verify limits itself by SIGALRM."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))

    def alarmed(**given):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(0.2)
        return [2.0]

    try:
        assert call(alarmed, timeout=5) == [[2.0]]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rung == [1]


def test_the_timeout_reaches_training(tmp_path):
    trainer = runs.make_trainer(tmp_path / "run", reward_funcs=sleeps, reward_timeout=0.2)
    with pytest.raises(RewardError, match=r"reward_timeout=0\.2 seconds"):
        trainer.train()
