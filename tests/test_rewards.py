"""spo.rewards: names → functions, completions → token and completion rewards."""

import asyncio
import functools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny

from spo.data import load_dataset_by_name
from spo.problems import create_reasoning_gym_task, encode_entry
from spo.rewards.functions import (
    RewardError,
    RewardFunction,
    RewardModel,
    load_reward_functions,
    score_completions,
)
from spo.rewards.logged import OF_RUN
from spo.rewards.verifiers import (
    format_reward,
    math_verify_reward,
    reasoning_gym_reward,
    soft_overlong_reward,
)


def score(*calls, weights=None, num_tokens=(3, 1), columns=None):
    """Score two completions with functions that return the given values (or are the functions)."""
    calls = [c if callable(c) else (lambda c=c, **_: c) for c in calls]
    functions = [RewardFunction(f"f{i}", call) for i, call in enumerate(calls)]
    texts = [f"completion {row}" for row in range(len(num_tokens))]
    ids = [list(range(n)) for n in num_tokens]
    return score_completions(functions, weights, texts, texts, ids, columns or {}, num_tokens)


# --- adding rewards up ----------------------------------------------------------------------------


def test_scalar_rewards_stand_on_the_last_token_and_are_weighted():
    rewards = score([1.0, 2.0], [10, None], weights=[0.5, 2.0])
    np.testing.assert_array_equal(rewards.token_rewards, [[0, 0, 20.5], [1, 0, 0]])
    np.testing.assert_array_equal(rewards.completion_rewards, [20.5, 1.0])
    np.testing.assert_array_equal(rewards.rewards_by_function, [[1, 10], [2, np.nan]])
    np.testing.assert_array_equal(rewards.scorable, [True, True])
    for array in (rewards.token_rewards, rewards.completion_rewards, rewards.rewards_by_function):
        assert array.dtype == np.float32


def test_dense_rewards_stand_on_their_tokens_and_mix_with_scalars():
    rewards = score([[1.0, 2.0, 3.0], 5.0], [1.0, [4.0]], weights=[1.0, 10.0])
    np.testing.assert_array_equal(rewards.token_rewards, [[1, 2, 13], [45, 0, 0]])
    np.testing.assert_array_equal(rewards.completion_rewards, [16, 45])
    np.testing.assert_array_equal(rewards.rewards_by_function, [[6, 1], [5, 4]])


def test_token_rewards_add_up_to_the_completion_reward():
    rng = np.random.default_rng(0)
    num_tokens = rng.integers(1, 9, size=20)
    dense = [rng.normal(size=n).tolist() for n in num_tokens]
    rewards = score(dense, rng.normal(size=20), weights=[0.3, -2.0], num_tokens=num_tokens)
    np.testing.assert_allclose(
        rewards.token_rewards.sum(axis=1), rewards.completion_rewards, rtol=1e-5, atol=1e-6
    )
    beyond = np.arange(rewards.token_rewards.shape[1]) >= num_tokens[:, None]
    assert not rewards.token_rewards[beyond].any()


def test_a_row_that_no_function_scores_is_unscorable():
    rewards = score([None, 1.0], [None, None])
    np.testing.assert_array_equal(rewards.scorable, [False, True])
    np.testing.assert_array_equal(rewards.completion_rewards, [np.nan, 1.0])
    np.testing.assert_array_equal(rewards.token_rewards, [[0, 0, 0], [1, 0, 0]])


def test_an_empty_completion_keeps_its_reward_without_a_token():
    rewards = score([7.0, 1.0], [[], [2.0]], num_tokens=(0, 1))
    np.testing.assert_array_equal(rewards.token_rewards, [[0], [3]])
    np.testing.assert_array_equal(rewards.completion_rewards, [7, 3])
    assert score([7.0, 1.0], num_tokens=(0, 0)).token_rewards.shape == (2, 0)


def test_arrays_and_tensors_are_rewards_too():
    import torch

    outputs = [
        np.array([1.0, 2.0]),
        torch.tensor([1.0, 2.0]),
        [np.float32(1), torch.tensor(2.0)],
        [True, 2],
        [torch.tensor([0.0, 0.0, 1.0]), np.array([2.0])],
    ]
    for output in outputs:
        np.testing.assert_array_equal(score(output).completion_rewards, [1, 2])


def test_functions_get_their_arguments_and_every_column():
    seen = {}

    def spy(prompts, completions, completion_ids, answer, **columns):
        seen.update(columns, prompts=prompts, completion_ids=completion_ids, answer=answer)
        assert {seen.pop(name, "missing") for name in OF_RUN} >= {None}  # no trainer, no state
        return [0.0, 0.0]

    score(spy, columns={"answer": ["4", "5"], "level": [1, 2]})
    assert seen == {
        "prompts": ["completion 0", "completion 1"],
        "completion_ids": [[0, 1, 2], [0]],
        "answer": ["4", "5"],
        "level": [1, 2],
    }


def test_async_functions_wait_together_also_inside_a_running_loop():
    def meeting_functions():
        both_wait = threading.Barrier(2, timeout=5)

        async def waits(**_):  # passes only if the other one is waiting at the same time
            await asyncio.to_thread(both_wait.wait)
            return [1.0, 2.0]

        return waits, waits

    np.testing.assert_array_equal(score(*meeting_functions()).completion_rewards, [2, 4])

    async def notebook():
        return score(*meeting_functions(), [1.0, 1.0])

    with ThreadPoolExecutor() as pool:  # the browser tests may leave a loop in this thread
        inside = pool.submit(asyncio.run, notebook()).result()
    np.testing.assert_array_equal(inside.completion_rewards, [3, 5])


def raises(**_):
    raise KeyError("no column 'answer'")


async def raises_later(**_):
    raise KeyError("no column 'answer'")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (raises, "'f0' raised KeyError: \"no column 'answer'\""),
        (raises_later, "'f0' raised KeyError"),
        ([1.0], "'f0' returned 1 rewards for 2 completions"),
        (3.0, "'f0' returned float, not a list"),
        (None, "'f0' returned NoneType, not a list"),
        ([1.0, float("nan")], "'f0' returned nan for row 1"),
        ([float("inf"), 1.0], "'f0' returned inf for row 0"),
        ([1e39, 1.0], "'f0' returned 1e+39 for row 0"),  # inf in float32
        ([1.0, "2"], "'f0' returned str for row 1"),
        ([[1.0, 2.0], 1.0], "'f0' returned 2 token rewards for row 0, whose completion has 3"),
        ([[1.0, None, 0.0], 1.0], "'f0' returned NoneType for row 0"),
    ],
)
def test_what_is_no_reward_names_function_and_row(output, message):
    with pytest.raises(RewardError) as error:
        score(output)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_that_raises_keeps_its_traceback_and_leaves_no_coroutine_behind(recwarn):
    with pytest.raises(RewardError, match="'f1' raised KeyError") as error:
        score(raises_later, raises)
    assert isinstance(error.value.__cause__, KeyError)
    assert not [w for w in recwarn if "never awaited" in str(w.message)]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [], [float("nan")]])
def test_weights_must_match_the_functions(weights):
    with pytest.raises(ValueError, match=r"reward_weights is .* one finite number .*'f0'"):
        score([1.0, 1.0], weights=weights)


def test_a_column_named_like_an_argument_is_an_error():
    with pytest.raises(ValueError, match="completions"):
        score([1.0, 1.0], columns={"completions": ["a", "b"]})


# --- loading --------------------------------------------------------------------------------------


def always_one(prompts, completions, completion_ids, **columns):
    return [1.0] * len(completions)


def test_functions_are_found_by_name_module_file_and_object(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def halves(completions, **_):\n    return [0.5, 0.5]\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ["format", "my_rewards:halves", f"{tmp_path}/my_rewards.py:halves", always_one]
    functions = load_reward_functions(given)
    assert [f.name for f in functions] == ["format", "halves", "halves_2", "always_one"]
    texts = ["<answer>4</answer>", "4"]
    ids = [[1], [1]]
    rewards = score_completions(functions, None, texts, texts, ids, {}, [1, 1])
    np.testing.assert_array_equal(rewards.rewards_by_function, [[1, 0.5, 0.5, 1], [0, 0.5, 0.5, 1]])


def test_names_are_unique_and_readable():
    functions = load_reward_functions(["format", "format", functools.partial(always_one), "format"])
    assert [f.name for f in functions] == ["format", "format_2", "always_one", "format_3"]


@pytest.mark.parametrize(
    ("func", "message"),
    [
        ("math_verifi", "Unknown reward 'math_verifi' (did you mean 'math_verify'?)"),
        ("os.path:joinn", "os.path has no reward function 'joinn' (did you mean 'join'?)."),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("no_such_file.py:f", "No such file"),
        ("no/such-model", "Could not load the reward model 'no/such-model'"),
        ("soft_overlong", "needs max_completion_length"),
        (3, "not 3"),
        ([], "No reward given"),
    ],
)
def test_a_name_that_cannot_be_loaded_is_one_sentence(func, message):
    with pytest.raises(ValueError, match=r".") as error:
        load_reward_functions(func)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_soft_overlong_by_name_measures_against_the_configured_length():
    (function,) = load_reward_functions("soft_overlong", max_completion_length=100)
    ids = [[0] * n for n in (80, 90, 100)]
    assert function.call([""] * 3, [""] * 3, ids) == [0.0, -0.5, -1.0]


def test_importing_the_module_is_cheap():
    heavy = {"torch", "transformers", "math_verify", "reasoning_gym", "datasets"}
    code = f"import sys, spo.rewards; print({heavy!r} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "set()", process.stderr


# --- built-ins ------------------------------------------------------------------------------------


def call(function, completions, **columns):
    return function([""] * len(completions), completions, [[]] * len(completions), **columns)


def test_reasoning_gym_verifier_scores_what_stands_in_the_tags():
    options = {"size": 5, "seed": 1}
    rows = load_dataset_by_name("reasoning_gym/chain_sum", options=options).to_dict()
    del rows["prompt"]
    right = [f"First <answer>0</answer>, no: <answer>{a}</answer>" for a in rows["answer"]]
    chat = [[{"role": "assistant", "content": text}] for text in right]
    for completions, expected in [(right, 1.0), (chat, 1.0), (rows["answer"], 0.0)]:
        assert call(reasoning_gym_reward, completions, **rows) == [expected] * 5
    wrong = [f"<answer>{int(a) + 1}</answer>" for a in rows["answer"]]
    assert max(call(reasoning_gym_reward, wrong, **rows)) < 0.5


def one_problem(task, **options):
    options = {"size": 1, "seed": 0, **options}
    problem = create_reasoning_gym_task(task, options)[0]
    return problem, {"entry": [encode_entry(problem)], "task": [task]}


@pytest.mark.parametrize("task", ["rearc", "count_primes", "knights_knaves", "complex_arithmetic"])
def test_verifiers_that_compare_tuples_accept_the_right_answer(task):
    problem, columns = one_problem(task)
    assert call(reasoning_gym_reward, [f"<answer>{problem['answer']}</answer>"], **columns) == [1.0]


def test_verifiers_that_raise_on_nonsense_score_zero():
    _, columns = one_problem("prime_factorization")
    assert call(reasoning_gym_reward, ["<answer>nope</answer>"], **columns) == [0.0]


@pytest.mark.parametrize("task", ["spiral_matrix", "countdown", "polynomial_multiplication"])
def test_answers_are_not_executed(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem, columns = one_problem(task)
    attack = "<answer>[__import__('pathlib').Path('owned').touch()]</answer>"
    assert call(reasoning_gym_reward, [attack], **columns)[0] < 0.1
    assert not (tmp_path / "owned").exists()
    assert call(reasoning_gym_reward, [f"<answer>{problem['answer']}</answer>"], **columns) == [1.0]


def test_the_verifier_gets_the_tasks_own_options():
    # Without them a composite does not know which verifiers it is made of.
    parts = [{"name": "chain_sum", "weight": 1, "config": {"max_digits": 1}}]
    options = {"size": 2, "datasets": parts}
    rows = load_dataset_by_name("reasoning_gym/composite", options=options).to_dict()
    del rows["prompt"]
    answers = [f"<answer>{a}</answer>" for a in rows["answer"]]
    assert call(reasoning_gym_reward, answers, **rows) == [1.0, 1.0]


MATH_CASES = [
    (r"\frac{1}{3}", r"so \boxed{\frac{2}{6}}", 1.0),
    ("1/3", "I get 2, so the answer is 1/3.", 1.0),
    ("1,000", "<answer>1000</answer>", 1.0),
    ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "The answer is 72.", 1.0),
    ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "The answer is 24.", 0.0),
    ("x^2+1", "<answer>1+x^2</answer>", 1.0),
    ("0.5", "<answer>1/2</answer>", 1.0),
    (7, r"\boxed{7} or 8", 1.0),
    ("5", "no idea", 0.0),
    ("5", "", 0.0),
    ("north-east", "north-east", None),
    (None, "3", None),
]


def test_math_verify_compares_latex_and_plain_answers():
    golds, completions, expected = map(list, zip(*MATH_CASES, strict=True))
    assert call(math_verify_reward, completions, answer=golds) == expected
    chat = [[{"role": "assistant", "content": text}] for text in completions]
    assert call(math_verify_reward, chat, solution=golds) == expected


def test_math_verify_works_outside_the_main_thread():
    golds = ["101/7", "x^3"]  # not parsed by another test: the main thread's results are cached
    completions = ["<answer>101/7</answer>", r"so \boxed{x^3}"]
    with ThreadPoolExecutor() as pool:
        rewards = pool.submit(call, math_verify_reward, completions, answer=golds).result()
    assert rewards == [1.0, 1.0]


def test_math_verify_needs_a_gold_column():
    functions = load_reward_functions("math_verify")
    with pytest.raises(
        RewardError, match=r"'math_verify' raised ValueError: .*'answer' or 'solution'"
    ):
        score_completions(functions, None, ["p"], ["c"], [[1]], {}, [1])


def test_format_takes_the_pattern_given():
    completions = ["<think>a\nb</think> c", "c", "<answer> </answer>", "<answer>1</answer>\n"]
    think = format_reward(r"^<think>.*</think>")
    assert call(think, completions) == [1.0, 0.0, 0.0, 0.0]
    assert call(format_reward(), completions) == [0.0, 0.0, 0.0, 1.0]


def test_soft_overlong_is_the_papers_equation():
    lengths = [0, 16384, 16385, 18432, 20480, 20481]  # L_max = 20480, L_cache = 4096
    rewards = soft_overlong_reward(20480, 4096)([""] * 6, [""] * 6, [range(n) for n in lengths])
    assert rewards == [0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0]
    without_cache = soft_overlong_reward(5, 0)([""] * 2, [""] * 2, [range(5), range(6)])
    assert without_cache == [0.0, -1.0]
    with pytest.raises(ValueError, match="cache_length=6"):
        soft_overlong_reward(5, 6)


# --- reward models --------------------------------------------------------------------------------


def one_by_one(model, tokenizer, texts):
    import torch

    with torch.no_grad():
        return [model(**tokenizer(t, return_tensors="pt")).logits.item() for t in texts]


def test_a_reward_model_scores_batches_as_it_scores_each_text():
    model, tokenizer = tiny.tiny_reward_model(), tiny.byte_tokenizer(chat_template=True)
    prompts, completions = ["a: ", "question: ", "b"], ["short", "a longer one", "c"]
    expected = one_by_one(model, tokenizer, ["a: short", "question: a longer one", "bc"])
    rewards = RewardModel(model, tokenizer, batch_size=2)(prompts, completions, None, extra=[1])
    np.testing.assert_allclose(rewards, expected, rtol=1e-4)
    assert len(set(rewards)) == 3

    chat = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "Well"}]
    expected = one_by_one(model, tokenizer, ["<bos><user>hi<eos><assistant>Well<eos>"])
    rewards = RewardModel(model, tokenizer)([chat[0]], [chat[1]], None)
    np.testing.assert_allclose(rewards, expected, rtol=1e-4)


def test_a_reward_model_loads_from_its_folder(tmp_path):
    model, tokenizer = tiny.tiny_reward_model(seed=1), tiny.byte_tokenizer()
    folder = tmp_path / "reward-model"
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="comes with no tokenizer: give reward_processing_classes"):
        load_reward_functions(str(folder))
    tokenizer.save_pretrained(folder)
    from_folder, loaded = load_reward_functions([str(folder), model], [None, tokenizer])
    assert [from_folder.name, loaded.name] == ["reward-model", "LlamaForSequenceClassification"]
    arguments = (["1+1="], ["2"], [[50]])
    assert from_folder.call(*arguments) == pytest.approx(loaded.call(*arguments), rel=1e-5)


def test_a_classifier_of_several_labels_is_no_reward_model():
    with pytest.raises(ValueError, match="has 2 outputs"):
        load_reward_functions(tiny.tiny_reward_model(num_labels=2), tiny.byte_tokenizer())


def test_processing_classes_must_match_the_functions():
    with pytest.raises(ValueError, match="2 reward_processing_classes do not fit 1"):
        load_reward_functions([always_one], [None, None])
