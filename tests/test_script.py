"""train_spo.py as a command: what it leaves behind is what SPOTrainer gives."""

import json
import os
import subprocess
import sys

import pytest
import tiny_runs as runs
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import train_spo
from spo import SPOConfig
from spo.rewards.functions import RewardError

PROMISED_METRICS = (
    "spo/policy_loss",
    "spo/value_loss",
    "spo/mean_segments_per_sequence",
    "spo/clip_fraction",
)
METRICS = (
    *PROMISED_METRICS,
    "step",
    "epoch",
    "reward",
    "reward_std",
    "rewards/low_bytes/mean",
    "rewards/low_bytes/std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "completions/clipped_ratio",
    "spo/explained_variance",
    "spo/value_mean",
    "spo/return_mean",
    "grad_norm",
    "spo/value_grad_norm",
    "learning_rate",
    "spo/value_learning_rate",
    "tokens_per_second",
    "time/generate",
    "time/score",
    "time/credit",
    "time/update",
)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A folder with the script's inputs and its run, and what it printed."""
    inputs = tmp_path_factory.mktemp("script")
    runs.script_inputs(inputs)
    flags = [*runs.script_flags(inputs / "run"), "--beta=0.1", "--save_steps", "1"]
    launch = "-m accelerate.commands.launch --cpu --num_processes=1 --num_machines=1 "
    launch += "--mixed_precision=no --dynamo_backend=no --num_cpu_threads_per_process=1"
    done = subprocess.run(
        [sys.executable, *launch.split(), "train_spo.py", *flags],
        cwd=runs.REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return inputs, done.stdout


def test_the_command_leaves_everything_behind(launched):
    run = launched[0] / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert set(METRICS) <= lines[-1].keys()
    assert all(isinstance(lines[-1][name], int | float) for name in METRICS)
    config = SPOConfig(**json.loads((run / "spo_config.json").read_text()))
    assert (config.beta, config.value_model_path, config.seed) == (0.1, "policy", 42)
    assert [saved.rollouts.step for saved in runs.rollouts_of(run)] == [1, 2]
    assert sorted(p.name for p in run.glob("checkpoint-*")) == [
        f"checkpoint-00000{i}" for i in "12"
    ]
    AutoModelForCausalLM.from_pretrained(run)
    AutoTokenizer.from_pretrained(run)
    assert AutoModelForSequenceClassification.from_pretrained(run / "critic").num_labels == 1


def test_the_command_says_where_everything_is(launched):
    inputs, printed = launched
    for line in ("metrics.jsonl", "rollouts", "critic", "python app.py"):
        assert line in printed
    card = (inputs / "run" / "README.md").read_text()
    assert "accelerate launch train_spo.py" in card
    assert f"dataset: {inputs / 'problems.jsonl'}" in card
    assert "reward functions: " in card


def test_the_api_trains_as_the_command_does(launched, tmp_path):
    inputs = launched[0]
    trainer = runs.make_trainer(
        tmp_path / "run", str(inputs / "model"), value_model_path="policy", beta=0.1
    )
    trainer.train()
    assert runs.metrics_of(tmp_path / "run") == runs.metrics_of(inputs / "run")
    ours, theirs = (runs.rollouts_of(folder / "run") for folder in (tmp_path, inputs))
    for a, b in zip(ours, theirs, strict=True):
        assert a.rollouts.completions == b.rollouts.completions
    saved = AutoModelForCausalLM.from_pretrained(inputs / "run").state_dict()
    for name, weight in trainer.policy.model.state_dict().items():
        assert (saved[name] == weight).all()


def test_flags_win_over_the_recipe_and_lora_reaches_the_trainer(tmp_path, capsys):
    """In this process: imports are paid for already."""
    runs.script_inputs(tmp_path)
    flags = dict(flag[2:].split("=", 1) for flag in runs.script_flags(tmp_path / "run"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""\
model_name_or_path: {flags.pop("model_name_or_path")}
dataset_name: {flags.pop("dataset_name")}
dataset_test_split: train
reward_funcs: [{flags.pop("reward_funcs")}]
use_peft: true
lora_r: 3
lora_target_modules: [q_proj, v_proj]
max_steps: 7
"""
    )
    train_spo.main(["--config", str(recipe), *(f"--{k}={v}" for k, v in flags.items())])
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
    config = adapter.peft_config["default"]
    assert (config.r, config.target_modules) == (3, {"q_proj", "v_proj"})
    lines = runs.metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 2], "7 steps in the recipe, 2 as a flag"
    assert "held-out reward" in capsys.readouterr().out


def test_help_is_quick_because_it_imports_no_torch():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train_spo.py', '--help']\n"
        "try: runpy.run_path('train_spo.py', run_name='__main__')\n"
        "except SystemExit as done: assert done.code == 0, done.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=runs.REPO, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for flag in ("--entropy_percentile", "--model_name_or_path", "--use_peft", "--config"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rte", "1"], "unknown argument --learning_rte; did you mean learning_rate?"),
        (["--config", "nowhere.yaml"], "recipe nowhere.yaml does not exist"),
        (["--max_steps", "many"], "--max_steps"),
        (["--entropy_percentile", "5"], r"entropy_percentile=5.0 must lie in [0, 1]."),
        (["--model_name_or_path", "x"], "--dataset_name is missing"),
        (
            ["--model_name_or_path", "x", "--load_in_4bit"],
            "Quantised weights cannot be trained; add --use_peft.",
        ),
    ],
)
def test_wrong_flags_are_one_line_and_no_traceback(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_spo.main(flags)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('use_peft: "false"', "use_peft='false' is text, not bool."),
        ("lora_r: eight", "lora_r='eight' is text, not int."),
        ("dtype: bf16", "dtype='bf16' is not one of auto, bfloat16, float16, float32, None."),
        ("dataset_kwargs:", "dataset_kwargs=None is not dict[str, Any]."),
        ("output_dir: 5", "output_dir=5 is not str | None."),
        ("report_to: tensorbord", "report_to='tensorbord': there is no such tracker"),
        ("resume_from_checkpoint: latest", "There is no complete checkpoint in"),
    ],
)
def test_a_slip_in_a_recipe_is_one_line(line, message, tmp_path, capsys):
    runs.script_inputs(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(line + "\n")
    flags = [flag for flag in runs.script_flags(tmp_path / "run") if line.split(":")[0] not in flag]
    with pytest.raises(SystemExit) as stopped:
        train_spo.main([f"--config={recipe}", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_reward_that_cannot_be_used_is_one_line_and_code_that_raises_keeps_its_traceback(
    tmp_path, capsys
):
    runs.script_inputs(tmp_path)
    (tmp_path / "bad.py").write_text(
        "def short(completions, **columns):\n    return [1.0]\n"
        "def raises(completions, **columns):\n    return 1 / 0\n"
    )
    flags = runs.script_flags(tmp_path / "run")
    with pytest.raises(SystemExit):
        train_spo.main([*flags, f"--reward_funcs={tmp_path / 'bad.py'}:short"])
    assert "'short' returned 1 rewards for 8" in capsys.readouterr().err.splitlines()[-1]
    flags.append("--overwrite_output_dir")
    with pytest.raises(RewardError, match="'raises' raised ZeroDivisionError"):
        train_spo.main([*flags, f"--reward_funcs={tmp_path / 'bad.py'}:raises"])


def test_an_estimate_needs_nothing_but_the_model(tmp_path, capsys):
    runs.folder(tmp_path / "model")
    train_spo.main(["--estimate_memory", f"--model_name_or_path={tmp_path / 'model'}"])
    assert "fits cards of: 8 GB" in capsys.readouterr().out


def test_the_settings_in_the_model_card_are_a_recipe(launched):
    inputs, _ = launched
    card = (inputs / "run" / "README.md").read_text()
    recipe = inputs / "of-the-card.yaml"
    recipe.write_text(card.split("```yaml\n")[1].split("```")[0])
    parser = train_spo.Parser((train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig))
    *_, args = parser.parse([f"--config={recipe}"])
    saved = json.loads((inputs / "run" / "spo_config.json").read_text())
    assert args == SPOConfig(**saved)


def test_the_script_goes_on_with_an_adapter(tmp_path):
    """Its own LoRA settings stand, the base is held as for a fresh one, its training continues."""
    runs.script_inputs(tmp_path)
    flags = ["--use_peft", "--bf16", "--lora_r=4", "--lora_dropout=0.1"]
    train_spo.main([*runs.script_flags(tmp_path / "run"), *flags])
    begun = train_spo.Parser(
        (train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig)
    ).parse(
        [
            *runs.script_flags(tmp_path / "again"),
            *("--use_peft", "--bf16", "--lora_r=8"),
            f"--model_name_or_path={tmp_path / 'run'}",
        ]
    )
    trainer = train_spo.build_trainer(*begun)
    assert trainer.policy.model.peft_config["default"].r == 4
    assert {p.dtype for p in trainer.policy.model.parameters() if not p.requires_grad} >= {
        torch.bfloat16
    }
    before = runs.weights_of(trainer)
    assert any(weights.any() for weights in before.values())
    trainer.train()
    assert not runs.same_bits(runs.weights_of(trainer), before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_name_or_path": "no/such-model"}, "No tokenizer at 'no/such-model'"),
        ({"dataset_name": "nowhere.jsonl"}, "Could not load the dataset 'nowhere.jsonl'"),
        ({"reward_funcs": "reasoning_gim"}, "did you mean 'reasoning_gym'?"),
        ({"value_model_path": "no/such-critic"}, "No value model at 'no/such-critic'"),
        ({"optim": "adam"}, "argument --optim: invalid choice: 'adam'"),
        ({"lr_scheduler_type": "straight"}, "invalid choice: 'straight'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_cannot_be_found_is_one_line_and_no_traceback(changed, message, tmp_path, capsys):
    runs.script_inputs(tmp_path)
    flags = [*runs.script_flags(tmp_path / "run"), *(f"--{k}={v}" for k, v in changed.items())]
    with pytest.raises(SystemExit) as stopped:
        train_spo.main(flags)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    assert message in printed[-1]
    assert not any("Traceback" in line for line in printed)
