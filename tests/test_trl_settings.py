"""Settings by the names of TRL, Transformers and open-r1: renamed, idle, refused; never ignored."""

import dataclasses
import warnings
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_runs as runs
from datasets import Dataset

import train_spo
from spo import SPOConfig, trl
from spo.cli import Parser
from spo.data import load_dataset_by_name

CLASSES = (train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig)
OURS = {f.name: getattr(cls(), f.name) for cls in CLASSES for f in dataclasses.fields(cls)}


def parsed(*argv, recipe=None):
    parser = Parser(CLASSES, prog="train_spo.py")
    instances = parser.parse(list(argv), default_recipe=recipe)
    return {k: v for one in instances for k, v in vars(one).items()}, parser.note


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit):
        parsed(*argv)
    return capsys.readouterr().err


# --- the table -------------------------------------------------------------------------------


def test_a_name_has_one_place():
    tables = [*OURS, *trl.RENAMED, *trl.IDLE, *trl.REFUSED]
    assert sorted(n for n in {*tables} if tables.count(n) > 1) == []
    assert {*trl.RENAMED.values()} <= OURS.keys()


@pytest.mark.skipif(find_spec("trl") is None, reason="pip install trl")
def test_every_setting_of_trl_has_its_place():
    from trl import GRPOConfig, ModelConfig
    from trl.scripts.grpo import GRPOScriptArguments

    for cls in (GRPOConfig, ModelConfig, GRPOScriptArguments):
        for theirs in dataclasses.fields(cls):
            made = theirs.default_factory
            default = theirs.default if made is dataclasses.MISSING else made()
            name = theirs.name
            if name in trl.SAME:
                assert OURS[name] == default, name
            elif name in trl.OTHER_DEFAULTS:
                assert trl.OTHER_DEFAULTS[name][0] == default != OURS[name], name
            else:
                assert name not in OURS, name
                assert trl.is_known(name), name
                if name in trl.REFUSED:
                    assert trl.is_harmless(name, default), name


# --- flags and recipes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "value"),
    [
        (["--torch_dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--warmup-ratio=0.1"], "warmup_steps", 0.1),
        (["--warmup_ratio", "0.1", "--warmup_steps", "0"], "warmup_steps", 0.1),
        (["--no_cuda"], "use_cpu", True),
        (["--evaluation_strategy", "epoch"], "eval_strategy", "epoch"),
        (["--reward_model_name_or_path", "a/b"], "reward_funcs", ["a/b"]),
        (
            ["--reward_model_name_or_path", "a/b", "--reward_funcs", "format", "x.y"],
            "reward_funcs",
            ["a/b", "format", "x.y"],
        ),
        (["--optim", "adamw_bnb_8bit"], "optim", "adamw_8bit"),
        (["--scale_rewards", "false"], "scale_rewards", "none"),
        (["--top_k", "-1"], "top_k", 0),
        (["--save_steps", "0.1"], "save_steps", 0.1),
        (
            ["--lora_target_modules", '"q_proj",', '"v_proj"'],
            "lora_target_modules",
            ["q_proj", "v_proj"],
        ),
        (["--report_to", "wandb,", "tensorboard"], "report_to", ["wandb", "tensorboard"]),
    ],
)
def test_their_flags_set_our_fields(theirs, ours, value):
    got, note = parsed(*theirs)
    assert got[ours] == value
    assert note == ""
    assert {name for name in got if got[name] != OURS[name]} <= {ours}


def test_recipes_are_read_as_flags_are_and_flags_win(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("torch_dtype: float16\nwarmup_ratio: 0.2\nreward_model_name_or_path: a/b\n")
    got, _ = parsed("--config", str(path), "--dtype", "bfloat16")
    assert (got["dtype"], got["warmup_steps"]) == ("bfloat16", 0.2)
    assert got["reward_funcs"] == ["a/b"]


def test_what_has_no_effect_is_one_line(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("dataloader_num_workers: 4\nhub_strategy: every_save\n")
    _, note = parsed(
        "--config", str(path), "--torch_compile", "--ddp_timeout=99", "--hub_strategy=end"
    )
    assert note == (
        "Without effect here (docs/trl.md): dataloader_num_workers, hub_strategy, torch_compile, "
        "ddp_timeout."
    )
    runs.script_inputs(tmp_path)
    train_spo.main([*runs.script_flags(tmp_path / "run"), "--config", str(path), "--max_steps=1"])
    assert "Without effect here (docs/trl.md): dataloader_num_workers" in capsys.readouterr().out


def test_values_that_ask_for_nothing_pass_in_silence():
    flags = ["--deepspeed", "null", "--fsdp", "", "--sync_ref_model", "false", "--eval_delay", "0"]
    got, note = parsed(*flags, "--top_entropy_quantile", "1.0", "--label_smoothing_factor=0.0")
    assert (got, note) == (OURS, "")


def test_everything_that_is_wrong_is_said_at_once(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("sync_ref_model: true\nlearning_rat: 1.0\nwarmup_ratio: 0.1\nwarmup_steps: 5\n")
    said = refused(capsys, "--config", str(path), "--lr", "1", "--fsdp=full_shard", "--zzz")
    assert said.count("\n") == 1
    for part in (
        "--fsdp (give it to accelerate launch, before the script's name)",
        "--lr (did you mean learning_rate?)",
        "--zzz (--help lists all)",
        "'sync_ref_model' (the reference stays what training began with)",
        "'learning_rat' (did you mean learning_rate?)",
        "'warmup_ratio' (it is warmup_steps here, which is given, too)",
        str(path),
    ):
        assert part in said


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--hub_token", "x"], "--hub_token; it would be saved with the run; log in"),
        (["--model", "m"], "--model; did you mean model_name_or_path?"),
        (["--num_processes=2"], "give it to accelerate launch"),
        (["--save_steps=2.5"], "save_steps=2.5 is neither a whole number of steps nor a fraction"),
    ],
)
def test_hints_make_sense(argv, part, capsys):
    with pytest.raises(SystemExit):
        train_spo.main([*argv, "--model_name_or_path=m"])
    assert part in capsys.readouterr().err


# --- in Python -------------------------------------------------------------------------------


class Schedule(StrEnum):
    COSINE = "cosine"


@dataclass
class Theirs:
    """As a GRPOConfig holds its settings."""

    output_dir: str | None = None
    learning_rate: float = 1e-6
    lr_scheduler_type: Schedule = Schedule.COSINE
    logging_steps: float = 10
    save_steps: float = 500
    eval_steps: float | None = None
    generation_batch_size: int = 16
    steps_per_generation: int = 2
    trust_remote_code: bool = False
    dataloader_num_workers: int = 0
    sync_ref_model: bool = False
    neftune_noise_alpha: float | None = None
    fsdp: list = field(default_factory=list)


def test_a_whole_configuration_is_carried_over():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = SPOConfig.from_trl(Theirs(output_dir="out", learning_rate=2e-6))
    expected = SPOConfig(
        output_dir="out",
        learning_rate=2e-6,
        lr_scheduler_type="cosine",
        logging_steps=10,
        save_steps=500,
        generation_batch_size=16,
    )
    assert args == expected
    with pytest.warns(UserWarning, match=r"Without effect here .*: dataloader_num_workers\."):
        args = SPOConfig.from_trl(Theirs(dataloader_num_workers=2, trust_remote_code=True))
    assert args.model_init_kwargs == {"trust_remote_code": True}
    with pytest.raises(
        ValueError, match=r"Theirs sets what SPO does not offer: sync_ref_model \(the"
    ):
        SPOConfig.from_trl(Theirs(sync_ref_model=True))


@pytest.mark.skipif(find_spec("trl") is None, reason="pip install trl")
def test_a_grpo_config_of_trl_trains(tmp_path):
    from trl import GRPOConfig

    theirs = GRPOConfig(
        str(tmp_path / "run"),
        use_cpu=True,
        bf16=False,
        max_steps=2,
        num_generations=4,
        max_completion_length=8,
        report_to="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = SPOConfig.from_trl(theirs)
    assert (args.save_steps, args.gradient_checkpointing) == (500, True)
    trainer = runs.SPOTrainer(
        runs.policy(), runs.low_bytes, args, runs.prompts(), processing_class=runs.byte_tokenizer()
    )
    assert trainer.train().global_step == 2


def test_unknown_settings_in_python_name_what_was_meant():
    with pytest.raises(TypeError) as error:
        SPOConfig(warmup_ratio=0.1, learning_rat=1, lora_r=8, sync_ref_model=True, zzz=1)
    assert str(error.value) == (
        "SPOConfig has no warmup_ratio (it is warmup_steps here), no learning_rat (did you mean "
        "learning_rate?), no lora_r (give SPOTrainer a peft_config), no sync_ref_model (the "
        "reference stays what training began with), no zzz (docs/flags.md lists all)."
    )


# --- rewards and data ------------------------------------------------------------------------


def test_rewards_go_by_their_names(tmp_path, monkeypatch):
    (tmp_path / "my_lib").mkdir()
    (tmp_path / "my_lib" / "rewards.py").write_text(
        "def short(completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    trainer = runs.make_trainer(
        tmp_path / "run",
        reward_funcs=[
            "trl.rewards.accuracy_reward",
            "accuracy",
            "think_format_reward",
            "get_soft_overlong_punishment",
            "my_lib.rewards.short",
        ],
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 8, "solution": ["1"] * 8}),
    )
    rewards = {function.name: function.call for function in trainer.reward_functions}
    assert list(rewards) == [
        *("math_verify", "math_verify_2", "think_format_reward", "soft_overlong", "short"),
    ]
    texts = ["<think>a</think>b", "<think>a\nb</think>", "x<think>a</think>", "<think>a", "b"]
    texts += ["<think>a<think>b</think>", "<think>a</think><think>"]
    got = rewards["think_format_reward"]([""] * 7, texts, [[]] * 7)
    assert got == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.skipif(find_spec("trl") is None, reason="pip install trl")
def test_think_format_is_what_trl_rewards():
    from trl.rewards import think_format_reward

    from spo.rewards.trl_names import by_name_of_trl

    parts = ["<think>", "</think>", "a", "\n"]
    texts = [x + y + z + w for x in parts for y in parts for z in parts for w in parts]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    ours = by_name_of_trl("think_format_reward")([""] * len(texts), texts, [[]] * len(texts))
    assert ours == think_format_reward(chats)
    assert sum(ours) > 10


def needs_gold(completions, gold, **columns):
    return [1.0] * len(completions)


def takes_no_more(completions):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (needs_gold, "asks for the column 'gold' .did you mean 'golden'.*has 'golden', 'other'"),
        (
            takes_no_more,
            r"does not take 'completion_ids', 'golden', 'other', 'prompts': write \*\*",
        ),
    ],
)
def test_a_reward_that_does_not_fit_the_columns_is_told_before_training(reward, message, tmp_path):
    data = Dataset.from_dict({"prompt": ["a"] * 4, "golden": ["1"] * 4, "other": ["2"] * 4})
    with pytest.raises(ValueError, match=message):
        runs.make_trainer(tmp_path / "run", reward_funcs=reward, train_dataset=data)
    assert not (tmp_path / "run").exists()


def test_prompts_of_a_csv_may_look_like_numbers(tmp_path):
    path = tmp_path / "sums.csv"
    path.write_text("prompt,answer\n12,3\n40,4\n")
    script = train_spo.ScriptArguments(dataset_name=str(path))
    data = train_spo.as_prompts(load_dataset_by_name(str(path)), script)
    assert data["prompt"][:] == ["12", "40"]
    path.write_text("question,answer\n12,3\n")
    with pytest.raises(ValueError, match=r"no column 'prompt'; it has .'question', 'answer'"):
        runs.make_trainer(tmp_path / "run", train_dataset=load_dataset_by_name(str(path)))


# --- help ------------------------------------------------------------------------------------


def test_the_inspector_s_help_waits_for_nothing():
    import subprocess
    import sys

    code = (
        "import runpy, sys\n"
        "sys.argv = ['app.py', '--help']\n"
        "try: runpy.run_path('app.py', run_name='__main__')\n"
        "finally: assert not {'gradio', 'numpy', 'torch', 'pyarrow'} & set(sys.modules)\n"
    )
    repository = Path(train_spo.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--annotate" in done.stdout
