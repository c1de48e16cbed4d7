"""The embedded model: it loads, its tokenizer is lossless, its traces right, the run repeatable."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reasoning_gym import create_dataset
from reasoning_gym.utils import extract_answer
from transformers import AutoModelForCausalLM, AutoTokenizer

REPO = Path(__file__).parent.parent
ASSET = REPO / "assets" / "quickstart"


def load_script():
    path = REPO / "scripts" / "make_quickstart_model.py"
    spec = importlib.util.spec_from_file_location("make_quickstart_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


script = load_script()
tokenizers = {
    "asset": AutoTokenizer.from_pretrained(ASSET),
    **{name: script.make_tokenizer(task.pieces) for name, task in script.TASKS.items()},
}


@pytest.fixture(autouse=True)
def one_thread():
    """As the script trains: with models this small, more threads only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def problems_of(task_name: str, size: int = 100):
    return create_dataset(task_name, size=size, seed=3, **script.TASKS[task_name].options)


def rewards_of(task_name: str, wrong_step_fraction: float) -> list[float]:
    problems = problems_of(task_name)
    writer = script.Writer(random.Random(0), wrong_step_fraction, fillers=4)
    traces = [script.TASKS[task_name].write(entry, writer) for entry in problems]
    return [
        problems.score_answer(extract_answer(trace), entry)
        for trace, entry in zip(traces, problems, strict=True)
    ]


# ------------------------------------------------------------------------------------------- asset
def test_asset_is_small_and_loads_offline():
    model = AutoModelForCausalLM.from_pretrained(ASSET)
    assert 200_000 <= model.num_parameters() <= 1_000_000
    assert (ASSET / "model.safetensors").stat().st_size < 8 * 2**20
    assert model.config.vocab_size == len(tokenizers["asset"])
    for name in ("pad_token_id", "eos_token_id"):
        expected = getattr(tokenizers["asset"], name)
        assert getattr(model.config, name) == getattr(model.generation_config, name) == expected


def test_asset_solves_problems_it_was_not_trained_on():
    problems = problems_of("chain_sum", size=60)
    model = AutoModelForCausalLM.from_pretrained(ASSET)
    greedy = script.accuracy(model, tokenizers["asset"], problems, do_sample=False)
    torch.manual_seed(0)
    sampled = script.accuracy(model, tokenizers["asset"], problems, do_sample=True)
    assert 0.35 < sampled < 0.7
    assert greedy > 0.95  # what reinforcement learning can reach by sharpening alone


# --------------------------------------------------------------------------------------- tokenizer
@pytest.mark.parametrize("name", tokenizers)
def test_pad_and_end_differ(name):
    tokenizer = tokenizers[name]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("4 - 1 =")["input_ids"][-1] not in tokenizer.all_special_ids


@pytest.mark.parametrize("name", tokenizers)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(name, text):
    tokenizer = tokenizers[name]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", script.TASKS)
def test_questions_and_traces_survive_in_few_tokens(name):
    tokenizer, task = tokenizers[name], script.TASKS[name]
    writer = script.Writer(random.Random(0), 0.5, fillers=8)
    for entry in problems_of(name):
        for text in (entry["question"], task.write(entry, writer)):
            token_ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(token_ids) == text
            assert len(token_ids) < 100


# ------------------------------------------------------------------------------------------ traces
@pytest.mark.parametrize("name", script.TASKS)
def test_traces_without_wrong_steps_are_right(name):
    assert rewards_of(name, wrong_step_fraction=0.0) == [1.0] * 100


@pytest.mark.parametrize("name", script.TASKS)
def test_traces_of_wrong_steps_are_mostly_wrong(name):
    # Slips can cancel each other, and the verifier pays a part for an answer inside a longer one.
    assert sum(rewards_of(name, wrong_step_fraction=1.0)) < 20


def test_trace_goes_on_from_its_wrong_number():
    class OneMore(script.Writer):
        def result(self, correct):
            return correct + 1

    entry = {"metadata": {"expression": "4 - 1 + 7"}}
    trace = script.write_chain_sum(entry, OneMore(random.Random(0), 0.0, fillers=0))
    assert trace == "4-1=4\n4+7=12\n<answer>12</answer>"


def test_habits_are_always_the_same_mistake():
    writer = script.Writer(random.Random(0), 0.0, fillers=0, habit_fraction=1.0)
    sums = {"metadata": {"expression": "4 + 9 - 7 - 2"}}
    assert script.write_chain_sum(sums, writer) == "4+9=13\n13-7=16\n16-2=14\n<answer>14</answer>"
    legs = {"metadata": {"animals": {"crab": 2, "cat": 1}}}
    trace = script.write_leg_counting(legs, writer)
    assert trace.splitlines()[::2] == ["2 crab*6=12", "1 cat*4=4", "<answer>16</answer>"]


def test_every_animal_taken_for_an_insect_is_one_of_the_tasks():
    assert set(script.TAKEN_FOR_INSECTS) <= set(script.ANIMALS)
    assert all(script.ANIMALS[name] != 6 for name in script.TAKEN_FOR_INSECTS)


def test_without_habits_nothing_is_drawn_for_them():
    """The embedded model's training data stay what they were."""
    one, other = (script.Writer(random.Random(0), 0.3, fillers=4) for _ in range(2))
    assert [one.difference(3, 7) for _ in range(9)] == [other.result(-4) for _ in range(9)]


# ---------------------------------------------------------------------------------------- the run
def test_same_seed_same_weights(tmp_path):
    sizes = ["--steps", "20", "--batch_size", "4", "--held_out", "4", "--width", "16"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        script.main([*sizes, "--seed", seed, "--output_dir", str(tmp_path / name)])
    a, b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "a")) == len(tokenizers["chain_sum"])
    assert (
        "20 batches of 4 problems with written-out solutions, seed 1"
        in (tmp_path / "a" / "README.md").read_text()
    )


def test_an_existing_model_goes_on_from_its_weights(tmp_path):
    sizes = ["--steps", "1", "--batch_size", "4", "--held_out", "4", "--learning_rate", "1e-6"]
    script.main(["--model", str(ASSET), *sizes, "--output_dir", str(tmp_path)])
    load = AutoModelForCausalLM.from_pretrained
    before, after = (load(folder).state_dict() for folder in (ASSET, tmp_path))
    for name, weight in before.items():
        assert after[name].dtype == torch.bfloat16
        torch.testing.assert_close(after[name].float(), weight, rtol=1e-2, atol=1e-4)
    assert "trained from quickstart as" in (tmp_path / "README.md").read_text()


def test_training_data_leave_out_the_held_out_problems():
    args = script.parse_arguments(["--steps", "1", "--batch_size", "8"])
    args.options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    held_out_problems = create_dataset("chain_sum", size=4, seed=args.seed, **args.options)
    held_out = {entry["question"] for entry in held_out_problems}
    tokenizer = tokenizers["chain_sum"]
    [(input_ids, labels)] = script.make_batches(args, tokenizer, held_out)
    assert len(input_ids) == 4
    for row_ids, row_labels in zip(input_ids, labels, strict=True):
        assert (
            tokenizer.decode(row_ids[row_labels == -100], skip_special_tokens=True) not in held_out
        )
        assert row_labels[row_labels != -100][-1] == tokenizer.eos_token_id
        assert torch.equal(row_ids[row_labels != -100], row_labels[row_labels != -100])
