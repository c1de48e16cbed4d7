"""Files and requests of every kind: each is shown, or refused in words, and harms only itself."""

import dataclasses
import json
import os
import random
import socket
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from inspector_fixtures import make_rollouts, write_conversations, write_run

from spo.config import SPOConfig
from spo.inspector import bounded, tables, views
from spo.inspector.folder import Folder
from spo.inspector.reading import read_group, read_step
from spo.inspector.server import page_functions
from spo.inspector.turns import last_words, turns
from spo.rollouts import load_rollouts, save_rollouts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "alpha", steps=(1, 2, 3))


def ask(folder, name, **query):
    functions = {function.__name__: function for function in page_functions(Folder(folder))}
    return json.loads(functions[name](query))


# --- conversations ----------------------------------------------------------------------------


def test_conversations_of_trl_open_with_their_turns(tmp_path):
    path = write_conversations(tmp_path)
    step = read_step(path)
    group = views.group_view(step, 0)
    assert group["turns"] == [
        {"role": "system", "text": "Be brief."},
        {"role": "user", "text": "What is 2 + 2?"},
    ]
    assert [c["text"] for c in group["completions"]] == ["4", "It is 5."]
    assert [c["reward"] for c in group["completions"]] == [1.0, 0.0]
    assert ask(tmp_path, "get_step", run=tmp_path.name, step=7)["groups"] == 2


@pytest.mark.parametrize(
    "prompt",
    [
        [["a"], ["b"]],
        [{"a": 1}, {"a": 2}],
        [[("role", "user")], [("role", "user")]],
        [[{"role": 1, "content": 2}]] * 2,
        [b"a", b"b"],
        [1, 2],
    ],
    ids=["lists", "structs", "maps", "numbers in messages", "bytes", "numbers"],
)
def test_prompts_of_other_kinds_are_refused_in_words(tmp_path, prompt):
    kind = (
        pa.map_(pa.string(), pa.string())
        if isinstance(prompt[0], list) and isinstance(prompt[0][0], tuple)
        else None
    )
    table = pa.table({"prompt": pa.array(prompt, kind), "completion": ["x", "y"]})
    (tmp_path / "rollouts").mkdir()
    pq.write_table(table, tmp_path / "rollouts" / "step-1.parquet")
    answer = ask(tmp_path, "get_step", run=tmp_path.name, step=1)
    assert answer["error"].endswith("its column prompt is neither text nor a list of messages.")


def test_repeated_messages_cost_nothing_before_their_size_is_known(tmp_path):
    messages = [[{"role": "user", "content": "x" * 100_000}]] * 5000
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"prompt": messages, "completion": ["y"] * 5000}), path)
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="MiB of text in prompt"):
        read_step(path)
    assert pa.total_allocated_bytes() - before < 1 << 20


# --- turns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
            ["system", "user"],
        ),
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            ["user"],
        ),
        ("<bos><start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\n", ["user"]),
        ("<|user|>\nU<|end|>\n<|assistant|>\n", ["user"]),
        ("<｜User｜>U<｜Assistant｜>", ["user"]),
        ("<s>[INST] U [/INST]", ["user"]),
        ("Question: U\nAnswer:", [""]),
    ],
)
def test_chat_templates_become_turns(text, roles):
    said = turns(text)
    assert [turn["role"] for turn in said] == roles
    assert "U" in said[-1]["text"]
    assert not any("<|" in turn["text"] for turn in said)


def test_lists_show_the_end_of_the_question():
    text = f"<|im_start|>user\n{'Solve this. ' * 30}What is 2 + 2?<|im_end|>\n"
    assert last_words(text).endswith("What is 2 + 2?")
    assert last_words(text).startswith("…")


# --- size -------------------------------------------------------------------------------------


def test_a_step_beyond_the_limits_is_read_prompt_by_prompt(run, monkeypatch):
    path = run / "rollouts" / "step-000002.parquet"
    whole = read_step(path)
    tokens = int(whole.rollouts.lengths.sum())
    monkeypatch.setattr(bounded, "MAX_VALUES", tokens // 2)
    os.utime(path)  # so that the step is read anew
    with pytest.raises(bounded.TooLarge):
        read_step(path)
    summary = ask(run, "get_step", run="alpha", step=2)
    assert (summary["groups"], summary["in_browser"]) == (3, False)
    view = ask(run, "get_group", run="alpha", step=2, group=1)
    assert [c["text"] for c in view["completions"]] == whole.rollouts.completions[4:8]
    assert [c["row"] for c in view["completions"]] == [4, 5, 6, 7]


def test_only_the_prompt_asked_for_is_read(run):
    path = run / "rollouts" / "step-000001.parquet"
    found = read_group(path, 2)
    assert len(found.step.rollouts) == 4
    assert found.first_row == 8
    assert found.step.rollouts.completions == read_step(path).rollouts.completions[8:]
    with pytest.raises(ValueError, match="there is no prompt 4"):
        read_group(path, 3)


# --- odd files --------------------------------------------------------------------------------


def test_pipes_sockets_folders_and_self_links_harm_nothing(run, tmp_path):
    shown = write_run(tmp_path / "beta", steps=(1,))
    folder = shown / "rollouts"
    os.mkfifo(folder / "step-000002.parquet")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "step-000003.parquet"))
    (folder / "step-000004.parquet").mkdir()
    (folder / "step-000005.parquet").symlink_to("step-000005.parquet")
    os.mkfifo(tmp_path / "beta" / "metrics.jsonl.pipe")
    (tmp_path / "loop").symlink_to("loop")
    answers = []

    def visit():
        found = Folder(tmp_path)
        answers.append((list(found.runs()), found.steps("beta")))

    thread = threading.Thread(target=visit, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "a pipe was waited for"
    runs, steps = answers[0]
    assert runs == ["beta"]
    assert list(steps.paths) == [1]
    assert set(steps.skipped) == {f"step-00000{i}.parquet" for i in (2, 3, 4, 5)}
    assert "error" in ask(tmp_path, "get_step", run="beta", step=2)


def test_metrics_of_every_kind_leave_the_others(run):
    path = run / "metrics.jsonl"
    text = path.read_text()
    lines = [
        '{"step": 4, "reward": ' + "9" * 400 + "}",
        '{"step": true, "reward": 1}',
        '{"step": 5, "reward": null, "x": Infinity, "y": -Infinity, "z": true}',
        "[" * 100_000,
        '{"step": ' + "1" * 5000 + "}",
        '{"step": 6, "reward": 0.6}',
    ]
    path.write_text(text + "\n".join(lines) + "\n")
    curves = Folder(run).curves("alpha")
    path.write_text(text)
    assert curves["reward"][-1] == [6, 0.6]
    assert len(curves["reward"]) == 4
    assert set(curves) == {"reward", "spo/value_loss"}


@pytest.mark.parametrize(
    "change",
    [
        {"num_generations": True},
        {"num_generations": 10**400},
        {"num_generations": None},
        {"config": {"gamma": float("nan")}},
        {"config": {"lam": float("inf")}},
        {"config": {"gamma": True}},
        {"config": {"normalize_advantages": 1}},
        {"config": {"beta": 10**400}},
        {"config": {"scale_rewards": None}},
        {"schema_version": 10**400},
        {"run_id": ["x"]},
    ],
    ids=str,
)
def test_metadata_of_every_kind_is_refused_in_words(run, tmp_path, change):
    table = pq.read_table(run / "rollouts" / "step-000001.parquet")
    details = json.loads(table.schema.metadata[b"spo"])
    if "config" in change:
        change = {"config": details["config"] | change["config"]}
    text = json.dumps(details | change).encode()
    (tmp_path / "rollouts").mkdir()
    path = tmp_path / "rollouts" / "step-000001.parquet"
    pq.write_table(table.replace_schema_metadata({b"spo": text}), path, row_group_size=4)
    for name in ("get_step", "get_group"):
        answer = ask(tmp_path, name, run=tmp_path.name, step=1, group=0)
        assert answer["ok"] is False
        assert len(answer["error"]) < 5000


def test_odd_thresholds_are_no_threshold(run, tmp_path):
    table = pq.read_table(run / "rollouts" / "step-000001.parquet")
    details = json.loads(table.schema.metadata[b"spo"]) | {"entropy_threshold": float("nan")}
    path = tmp_path / "step-000001.parquet"
    text = json.dumps(details).encode()
    pq.write_table(table.replace_schema_metadata({b"spo": text}), path, row_group_size=4)
    assert read_step(path).credit.entropy_threshold is None


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("get_group", {"group": 10**400}),
        ("get_group", {"group": True}),
        ("export_group", {"group": 0, "rows": [10**400, "x"]}),
        ("recompute", {"settings": {"gamma": 10**400}}),
        ("recompute", {"settings": {"advantage_level": []}}),
    ],
    ids=str,
)
def test_requests_of_every_kind_are_answered_in_words(run, name, query):
    answer = ask(run, name, run="alpha", step=1, **query)
    assert answer["ok"] is False
    assert 10 < len(answer["error"]) < 500


def test_an_export_repeats_no_row(run):
    answer = ask(run, "export_group", run="alpha", step=1, group=0, rows=[1] * 200_000)
    assert len(answer["html"]) < 1_000_000
    assert answer["html"].count('"completion": 1,') == 1


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_read_or_refused(tmp_path, seed):
    """Fifty mutations a seed: bytes flipped, cut out, repeated."""
    rng = random.Random(seed)
    rollouts = make_rollouts(np.random.default_rng(seed), 1, 2, 2, (3, 6))
    config = SPOConfig(num_generations=2)
    whole = reference.save(rollouts, tmp_path / "whole.parquet", config=config).read_bytes()
    for number in range(50):
        data = bytearray(whole)
        at = rng.randrange(4, len(data) - 8)
        size = rng.choice([1, 2, 8, 64])
        kind = rng.choice(["flip", "cut", "repeat"])
        if kind == "flip":
            data[at : at + size] = bytes(rng.randrange(256) for _ in range(size))
        elif kind == "cut":
            del data[at : at + size]
        else:
            data[at:at] = data[at : at + size]
        path = tmp_path / f"step-{number:06d}.parquet"
        path.write_bytes(data)
        for read in (read_step, load_rollouts, lambda file: read_group(file, 0)):
            assert reads_or_refuses(read, path)


def reads_or_refuses(read, path) -> bool:
    """Any exception but ValueError ends the test."""
    try:
        return read(path) is not None
    except ValueError as error:
        return len(str(error)) > 10


def test_nan_in_the_numbers_reaches_the_page_as_null(run, tmp_path):
    step = read_step(run / "rollouts" / "step-000001.parquet")
    rewards = step.rollouts.completion_rewards.copy()
    rewards[0], rewards[1] = np.nan, np.inf
    values = step.rollouts.token_values.copy()
    values[0, 0] = np.inf
    rollouts = dataclasses.replace(step.rollouts, completion_rewards=rewards, token_values=values)
    path = tmp_path / "rollouts" / "step-000001.parquet"
    save_rollouts(rollouts, path, credit=step.credit, config=SPOConfig(num_generations=4))
    for name in ("get_step", "get_group"):
        answer = ask(tmp_path, name, run=tmp_path.name, step=1)
        assert answer["ok"] is True, answer


def test_saved_columns_of_the_data_set_stand_beside_the_completion(run, tmp_path):
    source = run / "rollouts" / "step-000001.parquet"
    table = pq.read_table(source)
    answers = pa.array([f"answer {row // 4}" for row in range(len(table))])
    path = tmp_path / "rollouts" / "step-000001.parquet"
    path.parent.mkdir()
    pq.write_table(table.append_column("answer", answers), path, row_group_size=4)
    view = ask(tmp_path, "get_group", run=tmp_path.name, step=1, group=1)
    assert view["turns"][-1] == {"role": "answer", "text": "answer 1"}
    rows = tables.odd_completions(read_step(path))
    assert {row[-1] for row in rows} <= {"answer 0", "answer 1", "answer 2"}
