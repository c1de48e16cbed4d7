"""Reading, views, search and checks of the inspector, without Gradio and without a browser."""

import base64
import dataclasses
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from inspector_fixtures import from_pieces, make_rollouts, write_run, write_trl

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.inspector import bounded, search, views, whatif
from spo.inspector.folder import Folder
from spo.inspector.reading import read_step
from spo.inspector.server import page_functions
from spo.inspector.step import Step
from spo.segments import segment_starts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "alpha", steps=(1, 2, 10))


@pytest.fixture
def step(run):
    return read_step(run / "rollouts" / "step-000002.parquet")


def unpack(text, dtype="<f4"):
    return np.frombuffer(base64.b64decode(text), dtype)


# --- folder -----------------------------------------------------------------------------------


def test_a_folder_of_runs_a_run_and_a_file_all_open(run):
    file = run / "rollouts" / "step-000010.parquet"
    assert list(Folder(run.parent).runs()) == ["alpha"]
    assert list(Folder(run).steps("alpha").paths) == [1, 2, 10]
    assert list(Folder(file).steps(file.name).paths) == [10]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("missing", "does not exist"), ("notes.txt", "no Parquet"), (".", "no rollout")],
)
def test_a_wrong_folder_is_one_sentence(tmp_path, name, sentence):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=sentence):
        Folder(tmp_path / name)


def test_links_out_of_the_folder_and_damaged_files_are_skipped(run, tmp_path):
    inside = write_run(tmp_path / "shown", steps=(1, 2))
    (inside / "rollouts" / "step-000003.parquet").symlink_to(run / "rollouts/step-000001.parquet")
    whole = (inside / "rollouts" / "step-000002.parquet").read_bytes()
    (inside / "rollouts" / "step-000004.parquet").write_bytes(whole[: len(whole) // 2])
    (inside / "rollouts" / ".step-000005.parquet.1.tmp").write_bytes(b"")
    (tmp_path / "linked").symlink_to(run)
    shown = Folder(tmp_path)
    assert list(shown.runs()) == ["shown"]
    steps = shown.steps("shown")
    assert list(steps.paths) == [1, 2]
    assert steps.skipped == {
        "step-000003.parquet": "leads outside the folder",
        "step-000004.parquet": "half-written or damaged",
    }


@pytest.mark.parametrize("name", ["..", "/etc", "alpha/../alpha", ""])
def test_names_are_looked_up_never_joined(run, name):
    with pytest.raises(ValueError, match="no run"):
        Folder(run.parent).steps(name)


def test_curves_take_every_number_and_survive_a_half_line(run):
    path = run / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text + '{"step": 11, "reward": NaN, "ok": true}\n{"step": 12, "rew')
    curves = Folder(run).curves("alpha")
    path.write_text(text)
    assert set(curves) == {"reward", "spo/value_loss"}
    assert curves["reward"][0] == [1, 0.1]
    assert curves["reward"][-1] == [10, 1.0]


def test_a_resumed_run_counts_each_step_once(tmp_path):
    shown = write_run(tmp_path / "beta", steps=(1, 2))
    with (shown / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward": 0.9}\n')
    assert Folder(shown).curves("beta")["reward"] == [[1, 0.1], [2, 0.9]]


# --- reading ----------------------------------------------------------------------------------


def test_credit_is_verified_and_a_trainer_bug_is_found(step):
    assert whatif.check_saved(step)["state"] == "verified"
    wrong = step.credit.token_advantages.copy()
    wrong[5, 3] += 0.25
    credit = dataclasses.replace(step.credit, token_advantages=wrong)
    check = whatif.check_saved(dataclasses.replace(step, credit=credit))
    assert check["state"] == "differs"
    assert (check["row"], check["token"]) == (5, 3)
    assert check["max_difference"] == pytest.approx(0.25, rel=0.5)


def test_damage_inside_a_file_is_one_sentence(run, tmp_path):
    data = bytearray((run / "rollouts" / "step-000001.parquet").read_bytes())
    data[300:340] = b"\xff" * 40
    path = tmp_path / "step-000001.parquet"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"step-000001\.parquet is damaged"):
        read_step(path)


def test_another_schema_version_is_refused(run, tmp_path):
    table = pq.read_table(run / "rollouts" / "step-000001.parquet")
    details = json.loads(table.schema.metadata[b"spo"]) | {"schema_version": 99}
    path = tmp_path / "step-1.parquet"
    pq.write_table(table.replace_schema_metadata({b"spo": json.dumps(details).encode()}), path)
    with pytest.raises(ValueError, match="schema version 99"):
        read_step(path)


def altered(run, tmp_path, change):
    """A rollout file whose table went through `change`."""
    table = pq.read_table(run / "rollouts" / "step-000001.parquet")
    path = tmp_path / "step-1.parquet"
    pq.write_table(change(table), path)
    return path


def with_details(table, change):
    """The same table with its metadata changed."""
    details = json.loads(table.schema.metadata[b"spo"])
    return table.replace_schema_metadata({b"spo": json.dumps(change(details)).encode()})


def in_config(**fields):
    return lambda details: details | {"config": details["config"] | fields}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda details: [details], "metadata is no JSON object"),
        (lambda details: details | {"config": None}, "no valid config"),
        (lambda details: details | {"num_generations": "4"}, "no valid num_generations"),
        (in_config(gamma=7.0), "a configuration this version rejects"),
        (in_config(kl_in_reward=True, beta=0.1), "no reference log-probs"),
    ],
)
def test_metadata_from_elsewhere_is_checked(run, tmp_path, change, sentence):
    def strip(table):
        at = table.schema.get_field_index("token_logprobs_ref")
        field = table.schema.field(at)
        stripped = table.set_column(at, field, pa.nulls(len(table), field.type))
        return with_details(stripped.replace_schema_metadata(table.schema.metadata), change)

    with pytest.raises(ValueError, match=sentence):
        read_step(altered(run, tmp_path, strip))


def test_fields_of_other_versions_do_not_matter(run, tmp_path):
    path = altered(run, tmp_path, lambda table: with_details(table, in_config(from_later=1)))
    assert whatif.check_saved(read_step(path))["state"] == "verified"


def test_entropies_that_cannot_be_ranked_are_shown_but_not_recomputed(step):
    entropies = step.rollouts.token_entropies.copy()
    entropies[0, 0] = np.nan
    rollouts = dataclasses.replace(step.rollouts, token_entropies=entropies)
    check = whatif.check_saved(dataclasses.replace(step, rollouts=rollouts))
    assert check["state"] == "impossible"
    assert "NaN" in check["reason"]


def test_columns_of_other_lengths_are_refused(run, tmp_path):
    def shorten(table):
        at = table.schema.get_field_index("token_entropies")
        column = pa.array([[1.0]] * len(table), pa.list_(pa.float32()))
        return table.set_column(at, "token_entropies", column)

    with pytest.raises(ValueError, match="token_entropies has not one number per token"):
        read_step(altered(run, tmp_path, shorten))


def test_lacking_token_columns_give_the_reduced_view(run, tmp_path):
    path = altered(run, tmp_path, lambda table: table.drop_columns(["token_ends"]))
    step = read_step(path)
    assert "columns token_ends" in step.missing
    assert views.step_summary(step)["config"] is None


def test_uneven_groups_and_foreign_files_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="do not form groups of 4"):
        read_step(altered(run, tmp_path, lambda table: table.slice(0, 5)))
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), path)
    with pytest.raises(ValueError, match="no prompt and completion columns"):
        read_step(path)


def test_limits_are_checked_before_anything_is_expanded(tmp_path):
    """A few hundred bytes that would take gigabytes as text, or as numbers."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 9000), pa.array(["x" * 100_000]))
    bomb = tmp_path / "text.parquet"
    pq.write_table(pa.table({"prompt": text, "completion": text}), bomb, compression="zstd")
    assert bomb.stat().st_size < 5000
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="MiB of text"):
        read_step(bomb)
    assert pa.total_allocated_bytes() - before < 1 << 20

    zeros = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000), pa.array(["a"]))
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": zeros, "completion": zeros}), rows)
    with pytest.raises(ValueError, match="20000 rows"):
        read_step(rows)


def test_too_many_numbers_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_VALUES", 100)
    with pytest.raises(ValueError, match="numbers in one column"):
        read_step(altered(run, tmp_path, lambda table: table))


def test_trl_completions_open_in_reduced_mode(tmp_path):
    run = write_trl(tmp_path)
    paths = Folder(run).steps("trl").paths
    assert list(paths) == [5]
    step = read_step(paths[5])
    assert views.step_summary(step)["groups"] == 2
    group = views.group_view(step, 0)
    assert [c["text"] for c in group["completions"]] == ["é\n", ""]
    assert group["completions"][1]["reward"] is None
    assert unpack(group["advantages"]) == pytest.approx([0.7, -0.7])
    assert whatif.check_saved(step)["state"] == "impossible"


# --- views ------------------------------------------------------------------------------------


def test_group_view_carries_every_number_of_its_rows(step):
    group = views.group_view(step, 1)
    mask = step.rollouts.completion_mask[4:8]
    np.testing.assert_array_equal(
        unpack(group["entropies"]), step.rollouts.token_entropies[4:8][mask]
    )
    np.testing.assert_array_equal(
        unpack(group["segment_ids"], "<i4"), step.credit.segment_ids[4:8][mask]
    )
    assert [c["row"] for c in group["completions"]] == [4, 5, 6, 7]
    assert views.group_view(step, 1, [2])["completions"][0]["row"] == 6
    with pytest.raises(ValueError, match="no prompt 100"):
        views.group_view(step, 99)


def test_calibration_means_are_those_of_the_segments(step):
    bins = views.calibration(step, bins=4)
    starts = segment_starts(step.credit.segment_ids)
    values = step.rollouts.token_values[starts]
    assert sum(bin["count"] for bin in bins) == starts.sum()
    weighted = sum(bin["value"] * bin["count"] for bin in bins) / starts.sum()
    assert weighted == pytest.approx(float(values.mean()), abs=1e-6)


def test_characters_split_over_tokens_stay_whole():
    rollouts = from_pieces(np.random.default_rng(0), 1, [["a👍", "é"], ["b"]], 2)
    split = np.array([[1, 3, 5, 7], [1, -1, -1, -1]])
    mask = split >= 0
    wide = {
        name: np.zeros(mask.shape, np.float32)
        for name in ("token_entropies", "token_logprobs_old", "token_values", "token_rewards")
    }
    rollouts = dataclasses.replace(
        rollouts,
        token_ends=split,
        completion_mask=mask,
        token_ids=split,
        token_logprobs_ref=None,
        **wide,
    )
    config = SPOConfig(num_generations=2)
    step = Step(rollouts, assign_credit(rollouts, config), config, "")
    ends = unpack(views.group_view(step, 0)["completions"][0]["ends"], "<i4")
    assert ends.tolist() == [1, 1, 3, 4]  # UTF-16: the emoji is two units, whole in token 3


def test_empty_completions_and_no_critic(tmp_path):
    rng = np.random.default_rng(0)
    rollouts = from_pieces(rng, 1, [[], ["x"], [], []], 4, critic=False)
    path = reference.save(
        rollouts, tmp_path / "step-1.parquet", config=SPOConfig(num_generations=4)
    )
    step = read_step(path)
    assert views.calibration(step) == []
    assert whatif.check_saved(step)["state"] == "verified"
    assert [c["length"] for c in views.group_view(step, 0)["completions"]] == [0, 1, 0, 0]
    assert search.find_in_run({1: path}, {})["counts"] == {1: 1}


# --- the server functions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("get_step", {"run": "alpha", "step": 99}),
        ("get_step", {"run": 5, "step": 1}),
        ("get_group", {"run": "alpha", "step": 1, "group": "x"}),
        ("recompute", {"run": "alpha", "step": 1, "settings": {"gamma": 7.0}}),
        ("recompute", {"run": "alpha", "step": 1, "settings": {"gamma": "x"}}),
        ("recompute", {"run": "alpha", "step": 1, "settings": {"mode": "rloo"}}),
        ("draw_completion", {"run": "alpha", "step": 1, "completion": 9, "colour": "value"}),
        ("draw_completion", {"run": "alpha", "step": 1, "colour": "constructor"}),
        ("list_steps", ["alpha"]),
    ],
)
def test_refusals_are_envelopes(run, name, query):
    functions = {function.__name__: function for function in page_functions(Folder(run))}
    answer = json.loads(functions[name](query))
    assert answer["ok"] is False
    assert len(answer["error"]) > 10


def test_answers_are_strict_json(run):
    functions = {function.__name__: function for function in page_functions(Folder(run))}
    place = {"run": "alpha", "step": 1, "group": 0}
    names = ("list_steps", "get_step", "get_group", "export_group")
    for name in names:
        assert json.loads(functions[name](place))["ok"] is True


def test_a_thousand_steps_list_quickly(tmp_path):
    """Opening reads names and closing marks only; 2 s is the goal for the whole page."""
    rollouts = make_rollouts(np.random.default_rng(0), 1, 1, 2, (2, 4))
    config = SPOConfig(num_generations=2)
    first = reference.save(rollouts, tmp_path / "rollouts" / "step-000001.parquet", config=config)
    for number in range(2, 1001):
        (first.parent / f"step-{number:06d}.parquet").write_bytes(first.read_bytes())
    started = time.perf_counter()
    assert len(Folder(tmp_path).steps(tmp_path.name).paths) == 1000
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("rule", ["entropy", "probability", "fixed", "delimiter", "turn"])
def test_every_rule_of_segmentation_is_verified_and_shown(rule, tmp_path):
    """The browser knows the entropy rule; segments of the others are sent to it."""
    rollouts = make_rollouts(np.random.default_rng(0), 1, 2, 2, (8, 12))
    config = SPOConfig(num_generations=2, segmentation=rule, segment_length=3)
    step = read_step(reference.save(rollouts, tmp_path / "step-1.parquet", config))
    assert whatif.check_saved(step)["state"] == "verified"
    sent = views.credit_inputs(step)["boundaries"]
    assert (sent is None) == (rule == "entropy")
