"""Checkpoints: whole or not there, told from others; nothing a person has is deleted."""

import json
import shutil

import numpy as np
import pytest
import tiny_runs as runs
from peft import LoraConfig
from saved_runs import assert_goes_on_exactly, copy_of, files_of, train_whole, trainer_of

from spo.errors import RunFolderError
from spo.run import checkpoint
from spo.run.checkpoint import checkpoints_in, damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three steps with a checkpoint after each, and its weights."""
    return train_whole(tmp_path_factory.mktemp("whole") / "run")


# --- damage ----------------------------------------------------------------------------------
def empty(path):
    path.write_bytes(b"")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def gone(path):
    path.unlink()


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


DAMAGES = (empty, half, zeroed, one_bit, longer, gone, garbage)
FILES = (
    "weights.safetensors",
    "optimizer.bin",
    "optimizer_1.bin",
    "scheduler.bin",
    "scheduler_1.bin",
    "random_states_0.pkl",
    "trainer_state.json",
)


def test_every_file_of_a_checkpoint_is_tried_below(whole):
    assert {path.name for path in (whole[0] / "checkpoint-000003").iterdir()} == {*FILES}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", DAMAGES)
def test_damage_is_found_and_the_one_before_is_taken(harm, file, whole, tmp_path):
    run = copy_of(whole, tmp_path)
    harm(run / "checkpoint-000003" / file)
    path, said = checkpoint.choose(run, "latest", None)
    assert path == run / "checkpoint-000002"
    assert said.startswith(f"Not from checkpoint-000003 ({file} ")
    assert said.endswith(f"resuming from {path}.")


def test_a_run_goes_on_exactly_from_the_one_before(whole, tmp_path, capsys):
    run = copy_of(whole, tmp_path)
    one_bit(run / "checkpoint-000003" / "weights.safetensors")
    assert_goes_on_exactly(run, whole, "auto")
    assert "Not from checkpoint-000003 (weights.safetensors is damaged)" in capsys.readouterr().out


def test_a_damaged_one_that_is_named_is_refused_with_the_last_good_one(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    half(run / "checkpoint-000003" / "optimizer.bin")
    trainer = trainer_of(run, resume_from_checkpoint=str(run / "checkpoint-000003"))
    with pytest.raises(RunFolderError, match=r"optimizer\.bin is damaged; the last good .*000002"):
        trainer.train()


@pytest.mark.parametrize("resume", ["latest", "auto"])
def test_without_a_good_one_nothing_is_begun_anew_in_silence(resume, whole, tmp_path):
    run = copy_of(whole, tmp_path)
    for path in checkpoints_in(run):
        empty(path / "weights.safetensors")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"No checkpoint in .* is whole.*000003.*000001"):
        trainer_of(run, resume_from_checkpoint=resume).train()
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"[1]\n", b'{"step": "x"}\n', b"\xff\xfe\n", b"[" * 9999]
)
def test_garbage_in_the_metrics_does_not_block_resuming(line, whole, tmp_path, capsys):
    run = copy_of(whole, tmp_path)
    content = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([content[0], line + b"\n", *content[1:]]))
    shutil.rmtree(run / "checkpoint-000003")
    assert_goes_on_exactly(run, whole)
    assert "lines that are no metrics are dropped" in capsys.readouterr().out


# --- others' ---------------------------------------------------------------------------------
def foreign(run, name="checkpoint-500"):
    """What Transformers' Trainer leaves."""
    folder = run / name
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500, "epoch": 1.0}))
    (folder / "model.safetensors").write_bytes(b"theirs")
    return folder


def test_checkpoints_of_other_trainers_and_runs_are_neither_used_nor_deleted(whole, tmp_path):
    run = tmp_path / "run"
    theirs = foreign(run)
    another_run = run / "checkpoint-000777"
    shutil.copytree(whole[0] / "checkpoint-000003", another_run)
    before = files_of(theirs) | files_of(another_run)
    trainer_of(run, save_total_limit=1).train()
    assert [p.name for p in checkpoints_in(run, trainer_of(run).run.run_id)] == [
        "checkpoint-000003"
    ]
    trainer = trainer_of(run, resume_from_checkpoint="latest", max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4
    assert files_of(theirs) | files_of(another_run) == before


def test_a_run_whose_id_is_lost_is_known_by_its_checkpoints(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    (run / "spo_run.json").unlink()
    shutil.rmtree(run / "checkpoint-000003")
    assert_goes_on_exactly(run, whole)


def test_a_kill_between_two_renames_of_one_number_loses_neither(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    (run / "checkpoint-000003").rename(run / ".checkpoint-000003.before.tmp")
    trainer_of(run, resume_from_checkpoint="latest").train()
    assert damage(run / "checkpoint-000003") is None


def test_checkpoints_count_by_number_not_by_name(tmp_path, whole):
    for number in (999_999, 1_000_000):
        state = checkpoint.read_state(whole[0] / "checkpoint-000003") | {"step": number}
        state["checksum"] = checkpoint._checksum_of_state(state)
        folder = tmp_path / f"checkpoint-{number:06d}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps(state))
    assert [path.name for path in checkpoints_in(tmp_path)][-1] == "checkpoint-1000000"


def test_a_folder_in_the_way_of_a_checkpoint_is_put_aside(tmp_path):
    mine = foreign(tmp_path / "run", "checkpoint-000002")
    before = list(files_of(mine).values())
    trainer_of(tmp_path / "run").train()
    assert damage(tmp_path / "run" / "checkpoint-000002") is None
    aside = tmp_path / "run" / "checkpoint-000002.old-1"
    assert list(files_of(aside).values()) == before


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    mine = [
        *("notes.txt", "rollouts/notes.txt", "rollouts/step-000001.csv", "critic/mine.bin"),
        *(
            "checkpoint-best/model.bin",
            "checkpoint-500/trainer_state.json",
            "rollouts/step-1.parquet",
        ),
    ]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    trainer_of(run, max_steps=1, overwrite_output_dir=True)
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert left == {*mine, "spo_run.json"}


def test_a_persons_own_readme_is_put_aside(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "README.md").write_text("mine")
    trainer = runs.make_trainer(run, max_steps=1)
    trainer.train()
    trainer.save_model()
    assert (run / "README.md.old-1").read_text() == "mine"
    assert not list(run.rglob("*.old-2"))
    assert "Segment Policy Optimization" in (run / "README.md").read_text()
    assert [path.name for path in run.rglob("*.old-*")] == ["README.md.old-1"]


def test_an_adapter_of_the_run_before_does_not_stay_beside_a_full_model(tmp_path):
    run = tmp_path / "run"
    runs.make_trainer(run, peft_config=LoraConfig(**runs.LORA), max_steps=1).train()
    assert (run / "adapter_config.json").exists()
    runs.make_trainer(run, max_steps=1, overwrite_output_dir=True).train()
    assert not (run / "adapter_config.json").exists()


# --- by the clock, and how many stay -----------------------------------------------------------
def test_checkpoints_by_time_need_not_be_asked_for_and_the_newest_two_stay(tmp_path):
    trainer = trainer_of(tmp_path / "run", save_steps=0, save_minutes=1e-9, max_steps=5)
    trainer.train()
    assert [p.name for p in checkpoints_in(tmp_path / "run")] == [
        "checkpoint-000003",
        "checkpoint-000004",
    ]


def test_a_default_run_loses_at_most_fifteen_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("spo.run.pace.time.monotonic", lambda: now[0])

    def eight_minutes(completions, **columns):
        now[0] += 480
        return [1.0] * len(completions)

    trainer_of(tmp_path / "run", save_steps=0, max_steps=5, reward_funcs=eight_minutes).train()
    names = [p.name for p in checkpoints_in(tmp_path / "run")]
    assert names == ["checkpoint-000002", "checkpoint-000004"]


def test_the_last_good_one_stays_until_the_new_one_can_be_read(tmp_path, monkeypatch):
    run = tmp_path / "run"
    trainer_of(run, max_steps=2, save_total_limit=1).train()
    monkeypatch.setattr(checkpoint, "damage", lambda path: "a disk that lies")
    trainer = trainer_of(run, save_total_limit=1)
    trainer.save_checkpoint(9)
    assert [p.name for p in checkpoints_in(run)] == ["checkpoint-000002", "checkpoint-000009"]
