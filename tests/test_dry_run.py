"""--dry_run: one step of everything, what it took, and nothing left behind."""

import re
import tempfile

import pytest
import tiny_runs as runs

import train_spo
from spo.run.rehearsal import small


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    runs.script_inputs(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


@pytest.mark.parametrize("further", [[], ["--value_warmup_steps=5", "--dataset_streaming"]])
def test_it_says_what_a_step_and_the_run_take_and_leaves_nothing(inputs, capsys, further):
    before = files(inputs)
    held_out = ["--dataset_test_split=train", "--per_device_eval_batch_size=4"]
    flags = [
        *runs.script_flags(inputs / "run"),
        *held_out,
        "--max_steps=500",
        "--dry_run",
        *further,
    ]
    train_spo.main(flags)
    said = capsys.readouterr().out
    step = float(re.search(r"step        ([\d.]+) s: generate", said)[1])
    assert "8 completions of" in said
    assert re.search(r"evaluation  [\d.]+ s for 4 prompts: .* for 8\n", said)
    assert re.search(r"checkpoint  [\d,]+ MiB in [\d.]+ s", said)
    assert float(re.search(r"memory      ([\d.]+) GiB of this process", said)[1]) > 0.1
    assert "the run     500 steps: about" in said
    assert step < 60
    assert files(inputs) == before


def test_what_would_stop_the_run_stops_it(inputs, capsys):
    before = files(inputs)
    (inputs / "rewards.py").write_text("def low_bytes(**columns):\n    return [None] * 8\n")
    with pytest.raises(SystemExit) as ended:
        train_spo.main([*runs.script_flags(inputs / "run"), "--dry_run"])
    assert ended.value.code == 2
    assert "returned None for all 8 completions" in capsys.readouterr().err
    assert files(inputs) == before


def test_a_folder_that_is_taken_is_told_before_the_run(inputs, capsys):
    train_spo.main(runs.script_flags(inputs / "run"))
    with pytest.raises(SystemExit):
        train_spo.main([*runs.script_flags(inputs / "run"), "--dry_run"])
    assert "holds another run" in capsys.readouterr().err


def test_the_settings_of_the_run_stay_as_they_are(tmp_path):
    args = runs.config(tmp_path / "run", value_warmup_steps=3, report_to="tensorboard")
    before = args.to_dict()
    tried = small(args, str(tmp_path / "elsewhere"))
    assert args.to_dict() == before
    assert (tried.max_steps, tried.value_warmup_steps, tried.report_to) == (1, 0, [])
    assert not tried.push_to_hub
