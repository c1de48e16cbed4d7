"""spo.data: names → datasets, datasets → prompts, steps → rows."""

import json
import re

import numpy as np
import pytest
import tiny
from datasets import Dataset, DatasetDict
from tokenizers.processors import TemplateProcessing

from spo.config import SPOConfig
from spo.data import as_chat, load_dataset_by_name, prepare_prompts, prepare_split
from spo.problems import (
    HELD_OUT_SEED_OFFSET,
    create_reasoning_gym_task,
    decode_entry,
    encode_entry,
    load_reasoning_gym_splits,
)
from spo.prompts import PromptBatch, PromptBatches, prompt_order

ROWS = [{"prompt": "2+2=", "answer": "4"}, {"prompt": "3+5=", "answer": "8"}]
CHAT = [{"role": "user", "content": "hi"}]


def tokenizer_that_adds(single: str, chat_template: bool = False):
    """The byte tokenizer with `single`, such as "<bos> $A <eos>", around every plain text."""
    tokenizer = tiny.byte_tokenizer(chat_template)
    special_tokens = [("<bos>", tiny.BOS), ("<eos>", tiny.EOS)]
    post = TemplateProcessing(single=single, pair="$A $B", special_tokens=special_tokens)
    tokenizer.backend_tokenizer.post_processor = post
    return tokenizer


# --- names ----------------------------------------------------------------------------------------


def test_reasoning_gym_rows_are_the_librarys_problems():
    dataset = load_dataset_by_name("reasoning_gym/chain_sum", options={"size": 3, "seed": 7})
    problems = list(create_reasoning_gym_task("chain_sum", {"size": 3, "seed": 7}))
    assert dataset["prompt"][:] == [problem["question"] for problem in problems]
    assert dataset["answer"][:] == [problem["answer"] for problem in problems]
    assert [decode_entry(entry) for entry in dataset["entry"]] == problems
    assert set(dataset["task"]) == {"chain_sum"}
    assert json.loads(dataset[0]["task_options"]) == {"size": 3, "seed": 7}


def test_reasoning_gym_without_seed_is_the_same_in_every_process():
    first = load_dataset_by_name("reasoning_gym/chain_sum", options={"size": 2})
    again = load_dataset_by_name("reasoning_gym/chain_sum", options={"size": 2, "seed": None})
    assert first["prompt"][:] == again["prompt"][:]


# The tasks of reasoning-gym 0.1.25 whose entries hold tuples or numbers as keys (and are quick).
TASKS_BEYOND_JSON = [
    "advanced_geometry",
    "arc_agi",
    "complex_arithmetic",
    "count_primes",
    "course_schedule",
    "futoshiki",
    "game_of_life_halting",
    "graph_color",
    "knights_knaves",
    "rearc",
    "string_splitting",
    "string_synthesis",
]


@pytest.mark.parametrize("task", TASKS_BEYOND_JSON)
def test_entries_survive_their_json(task):
    for problem in create_reasoning_gym_task(task, {"size": 1, "seed": 3}):
        assert decode_entry(encode_entry(problem)) == problem


def test_composite_takes_its_parts_as_plain_dicts():
    parts = [{"name": "chain_sum", "weight": 1, "config": {"max_digits": 1}}]
    dataset = load_dataset_by_name(
        "reasoning_gym/composite", options={"size": 2, "datasets": parts}
    )
    assert decode_entry(dataset[0]["entry"])["metadata"]["source_dataset"] == "chain_sum"


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "reasoning_gym/chain_sums",
            {},
            "106 tasks but no 'chain_sums' (did you mean 'chain_sum'?)",
        ),
        ("reasoning_gym/chain_sum", {"options": {"max_term": 3}}, "did you mean 'max_terms'"),
        ("reasoning_gym/chain_sum", {"options": {"size": 0}}, "size must be positive"),
        ("reasoning_gym/chain_sum", {"split": "test"}, "neither configurations nor splits"),
        ("no/such-set", {}, "Could not load the dataset 'no/such-set'"),
        ("missing.jsonl", {}, "Could not load the dataset 'missing.jsonl'"),
    ],
)
def test_a_name_that_cannot_be_loaded_is_one_sentence(name, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_dataset_by_name(name, **kwargs)
    assert "\n" not in str(error.value)


def test_local_files_and_folders_hold_the_same_rows(tmp_path):
    dataset = Dataset.from_list(ROWS)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    dataset.to_json(tmp_path / "rows.jsonl")
    dataset.to_csv(tmp_path / "rows.csv")
    (tmp_path / "folder").mkdir()
    dataset.to_parquet(tmp_path / "folder" / "rows.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(tmp_path / "splits")
    for name in ["rows.json", "rows.jsonl", "folder/rows.parquet", "folder", "saved", "splits"]:
        assert load_dataset_by_name(str(tmp_path / name)).to_list() == ROWS, name
    csv = load_dataset_by_name(str(tmp_path / "rows.csv"))  # a CSV has no types: 4, not "4"
    assert csv["prompt"][:] == dataset["prompt"][:]
    assert load_dataset_by_name(str(tmp_path / "splits"), split="test").to_list() == ROWS[1:]


def test_a_broken_file_or_absent_split_names_the_file(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"prompt": ')
    with pytest.raises(ValueError, match=r"broken\.jsonl"):
        load_dataset_by_name(str(tmp_path / "broken.jsonl"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(ValueError, match=r"(?s)rows\.jsonl.*test"):
        load_dataset_by_name(str(tmp_path / "rows.jsonl"), split="test")


def test_splits_share_no_question_and_keep_their_size():
    # One-digit sums of two terms: 200 different questions, so 100 + 60 draws collide for sure.
    options = {"size": 100, "min_terms": 2, "max_terms": 2, "max_digits": 1}
    train, evaluation = load_reasoning_gym_splits("reasoning_gym/chain_sum", options, eval_size=60)
    plain = load_dataset_by_name("reasoning_gym/chain_sum", options=options)
    assert set(plain["prompt"]) & set(evaluation["prompt"])  # the test would see a leak
    assert not set(train["prompt"]) & set(evaluation["prompt"])
    assert (len(train), len(evaluation)) == (100, 60)
    seed = json.loads(evaluation[0]["task_options"])["seed"]
    assert seed == HELD_OUT_SEED_OFFSET


def test_splits_of_a_task_with_too_few_questions_is_an_error():
    options = {"size": 50, "min_terms": 1, "max_terms": 1, "max_digits": 1}
    with pytest.raises(ValueError, match="Only 0 of 500 chain_sum problems"):
        load_reasoning_gym_splits("chain_sum", options, eval_size=200)


# --- prompts --------------------------------------------------------------------------------------


def test_text_prompts_keep_their_columns_and_gain_text_and_ids():
    prepared = prepare_prompts(Dataset.from_list(ROWS), tiny.byte_tokenizer())
    assert prepared.dataset.column_names == ["prompt", "answer", "prompt_text", "prompt_ids"]
    assert prepared.dataset["prompt_ids"][:] == [list(b"2+2="), list(b"3+5=")]
    assert prepared.dataset["prompt_text"][:] == ["2+2=", "3+5="]
    assert prepared.dataset["answer"][:] == ["4", "8"]
    assert (prepared.num_dropped, prepared.num_truncated) == (0, 0)


def test_a_text_prompt_keeps_its_automatic_bos_and_loses_the_automatic_eos():
    tokenizer = tokenizer_that_adds("<bos> $A <eos>")
    assert tokenizer("2").input_ids == [tiny.BOS, ord("2"), tiny.EOS]
    prepared = prepare_prompts(Dataset.from_list(ROWS), tokenizer)
    assert prepared.dataset[0]["prompt_ids"] == [tiny.BOS, *b"2+2="]


def test_chat_prompts_hold_the_templates_special_tokens_once():
    tokenizer = tokenizer_that_adds("<bos> $A <eos>", chat_template=True)
    prepared = prepare_prompts(Dataset.from_list([{"prompt": CHAT}]), tokenizer)
    row = prepared.dataset[0]
    assert row["prompt_text"] == "<bos><user>hi<eos><assistant>"
    assert row["prompt_ids"] == [tiny.BOS, *b"<user>hi", tiny.EOS, *b"<assistant>"]
    assert row["prompt"] == CHAT


def test_a_chat_that_ends_with_the_assistant_is_continued():
    messages = [*CHAT, {"role": "assistant", "content": "Well"}]
    prepared = prepare_prompts(
        Dataset.from_list([{"prompt": messages}]), tiny.byte_tokenizer(chat_template=True)
    )
    assert prepared.dataset[0]["prompt_text"] == "<bos><user>hi<eos><assistant>Well"


def test_keys_that_only_other_messages_have_do_not_reach_the_template():
    tokenizer = tiny.byte_tokenizer(chat_template=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.keys() | list }}{% endfor %}"
    rows = [{"prompt": [{**CHAT[0], "name": "Ann"}]}, {"prompt": CHAT}]
    prepared = prepare_prompts(Dataset.from_list(rows), tokenizer)
    assert "name" in prepared.dataset[0]["prompt_text"]
    assert "name" not in prepared.dataset[1]["prompt_text"]


def test_a_system_prompt_makes_text_a_chat_and_stands_before_messages():
    system, own = (
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Rhyme."},
    )
    texts = as_chat(Dataset.from_list(ROWS), "Be brief.")
    assert texts["prompt"][:] == [
        [system, {"role": "user", "content": row["prompt"]}] for row in ROWS
    ]
    assert texts["answer"][:] == ["4", "8"]
    chats = as_chat(Dataset.from_list([{"prompt": CHAT}, {"prompt": [own, *CHAT]}]), "Be brief.")
    assert chats["prompt"][:] == [[system, *CHAT], [own, *CHAT]]
    prepared = prepare_prompts(texts, tiny.byte_tokenizer(chat_template=True))
    assert prepared.dataset[0]["prompt_text"] == (
        "<bos><system>Be brief.<eos><user>2+2=<eos><assistant>"
    )


def test_a_system_prompt_needs_the_prompt_column():
    with pytest.raises(ValueError, match=r"no column 'prompt' \(did you mean 'promt'"):
        as_chat(Dataset.from_list([{"promt": "2+2="}]), "Be brief.")


def test_over_long_prompts_are_dropped_and_counted():
    dataset = Dataset.from_list([{"prompt": "abcdef"}, {"prompt": "xyz"}, {"prompt": "abcd"}])
    prepared = prepare_prompts(dataset, tiny.byte_tokenizer(), max_prompt_length=4)
    assert prepared.dataset["prompt"][:] == ["xyz", "abcd"]
    assert (prepared.num_dropped, prepared.num_truncated) == (1, 0)


@pytest.mark.parametrize(
    ("single", "ids", "text"),
    [("$A", list(b"cdef"), "cdef"), ("<bos> $A", [tiny.BOS, *b"def"], "def")],
)
def test_over_long_prompts_are_cut_on_the_left_and_counted(single, ids, text):
    dataset = Dataset.from_list([{"prompt": "abcdef"}, {"prompt": "xyz"}])
    prepared = prepare_prompts(
        dataset,
        tokenizer_that_adds(single),
        max_prompt_length=4,
        overlong_prompts="truncate_left",
    )
    assert prepared.dataset[0]["prompt_ids"] == ids
    assert prepared.dataset[0]["prompt_text"] == text
    assert prepared.dataset[1]["prompt_text"] == "xyz"
    assert (prepared.num_dropped, prepared.num_truncated) == (0, 1)


@pytest.mark.parametrize(
    ("rows", "kwargs", "message"),
    [
        ([], {}, "dataset is empty"),
        ([{"promt": "a"}], {}, "no column 'prompt' (did you mean 'promt'?)"),
        ([{"prompt": 3}], {}, "row 0 of column 'prompt' is '3' (int)"),
        ([{"prompt": "a"}, {"prompt": None}], {}, "row 1 of column 'prompt' is 'None'"),
        ([{"prompt": [1, 2]}], {}, "must be a text or a non-empty list of chat messages"),
        ([{"prompt": [{"role": "user"}]}], {}, "with a text 'role' and 'content'"),
        ([{"prompt": "a"}, {"prompt": ""}], {}, "row 1 of column 'prompt' is empty (0 tokens)"),
        ([{"prompt": "abc"}], {"max_prompt_length": 2}, "All 1 prompts are longer than"),
        ([{"prompt": "a"}], {"max_prompt_length": 0}, "must be at least 1"),
        ([{"prompt": "a"}], {"overlong_prompts": "cut"}, "'cut' is not drop or truncate_left"),
        ([{"prompt": "a", "prompt_ids": 1}], {}, "has a column 'prompt_ids'"),
    ],
)
def test_bad_prompts_are_one_sentence(rows, kwargs, message):
    with pytest.raises(ValueError, match=r".") as error:
        prepare_prompts(Dataset.from_list(rows), tiny.byte_tokenizer(chat_template=True), **kwargs)
    assert message in str(error.value)


def test_chat_messages_without_a_chat_template_or_against_it():
    dataset = Dataset.from_list([{"prompt": CHAT}])
    with pytest.raises(ValueError, match="has no chat template"):
        prepare_prompts(dataset, tiny.byte_tokenizer())
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no user role') }}"
    with pytest.raises(ValueError, match="refused row 0 of column 'prompt': no user role"):
        prepare_prompts(dataset, tokenizer)


def test_a_dataset_of_another_kind_is_an_error():
    with pytest.raises(ValueError, match=r"not list: build one with Dataset\.from_list"):
        prepare_prompts(ROWS, tiny.byte_tokenizer())


def prepared(dataset, name="train_dataset", **settings):
    return prepare_split(dataset, name, tiny.byte_tokenizer(), SPOConfig(**settings), print)


def test_of_several_splits_the_one_for_it_is_taken_or_the_names_are_told():
    rows = Dataset.from_list(ROWS)
    splits = DatasetDict(train=rows, test=rows.select([1]))
    assert prepared(splits)["answer"][:] == ["4", "8"]
    assert prepared(splits, "eval_dataset")["answer"][:] == ["8"]
    with pytest.raises(
        ValueError, match=r"no split 'train'.*it has main, held_out: choose one with"
    ):
        prepared(DatasetDict(main=rows, held_out=rows))


def test_an_absent_split_on_disk_names_those_there_are(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        load_dataset_by_name(str(tmp_path / "saved"), split="trian")


def upper(batch):
    """A transform that makes the prompt, as some make chat messages of columns."""
    return {"prompt": [f"{q}?" for q in batch["question"]], "answer": batch["answer"]}


FORMATS = {
    "torch": lambda rows: rows.with_format("torch"),
    "numpy": lambda rows: rows.with_format("numpy"),
    "pandas": lambda rows: rows.with_format("pandas"),
    "arrow": lambda rows: rows.with_format("arrow"),
    "one column": lambda rows: rows.with_format("torch", columns=["number"]),
    "transform": lambda rows: rows.rename_column("prompt", "question").with_transform(upper),
    "saved": None,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_of_the_data_set_changes_nothing(name, tmp_path):
    rows = Dataset.from_list([row | {"number": i, "list": [i, 2]} for i, row in enumerate(ROWS)])
    if name == "saved":  # a data set on disk keeps its format
        rows.with_format("torch").save_to_disk(tmp_path / "rows")
        formatted = load_dataset_by_name(str(tmp_path / "rows"))
    else:
        formatted = FORMATS[name](rows)
    ready = prepared(formatted)
    mark = "?" if name == "transform" else ""
    assert ready["prompt_text"][:] == ["2+2=" + mark, "3+5=" + mark]
    batch = PromptBatch.take(ready, 1, np.arange(2), np.array([1, 0]))
    assert batch.prompts == ["3+5=" + mark, "2+2=" + mark]
    assert batch.columns["answer"] == ["8", "4"]
    if name != "transform":
        assert batch.columns["list"] == [[1, 2], [0, 2]]
        assert as_chat(formatted, "Add.")[0]["prompt"][1] == {"role": "user", "content": "2+2="}


@pytest.mark.parametrize("kind", ["torch", "pandas", None])
def test_messages_survive_a_format(kind):
    rows = Dataset.from_list([{"prompt": CHAT, "answer": "4"}] * 2).with_format(kind)
    tokenizer = tiny.byte_tokenizer(chat_template=True)
    ready = prepare_split(rows, "train_dataset", tokenizer, SPOConfig(), print)
    assert ready[0]["prompt"] == CHAT
    assert ready[0]["prompt_text"] == "<bos><user>hi<eos><assistant>"


# --- order ----------------------------------------------------------------------------------------


def test_the_order_depends_on_seed_and_epoch_only():
    orders = {(seed, epoch): prompt_order(50, epoch, seed) for seed in (0, 1) for epoch in (0, 1)}
    assert len({order.tobytes() for order in orders.values()}) == 4
    for (seed, epoch), order in orders.items():
        assert sorted(order) == list(range(50))
        np.testing.assert_array_equal(order, prompt_order(50, epoch, seed))
    np.testing.assert_array_equal(prompt_order(3, 5, 1, shuffle=False), [0, 1, 2])


@pytest.mark.parametrize(("num_prompts", "per_step"), [(7, 3), (6, 3), (3, 7), (1, 4), (5, 5)])
def test_batches_are_the_epoch_orders_laid_end_to_end(num_prompts, per_step):
    batches = PromptBatches(num_prompts, per_step, seed=4, shuffle=True)
    num_steps = 2 * num_prompts  # = 2 · per_step whole epochs
    steps = [batches.indices(step) for step in reversed(range(num_steps))][::-1]
    orders = [prompt_order(num_prompts, epoch, seed=4) for epoch in range(2 * per_step)]
    assert all(len(rows) == per_step for rows in steps)
    np.testing.assert_array_equal(np.concatenate(steps), np.concatenate(orders))
    assert batches.epoch(num_steps) == 2 * per_step


def test_batches_need_prompts():
    with pytest.raises(ValueError, match="at least 1"):
        PromptBatches(0, 4)
