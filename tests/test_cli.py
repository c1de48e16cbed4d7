"""spo.cli: flags, recipes, and errors that say what to write instead."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import spo
import train_spo
from spo.cli import Parser, options_table
from spo.config import SPOConfig
from train_spo import ModelArguments, ScriptArguments

REPOSITORY = Path(__file__).resolve().parents[1]
CLASSES = (ModelArguments, ScriptArguments, SPOConfig)
FIELDS = [field.name for cls in CLASSES for field in dataclasses.fields(cls)]


def parse(*argv, recipe=None):
    """The settings `argv` makes, of all three dataclasses."""
    instances = Parser(CLASSES, prog="train_spo.py").parse(list(argv), default_recipe=recipe)
    return {k: v for instance in instances for k, v in vars(instance).items()}


@pytest.fixture
def refused(capsys):
    """Call with argv: the one line on stderr that the parser ends with."""

    def call(*argv, run=parse):
        with pytest.raises(SystemExit) as stop:
            run(*argv)
        assert stop.value.code == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("train_spo.py: ")
        return output.err

    return call


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe; returns its path."""

    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# --- flags ----------------------------------------------------------------------------------------


def test_no_flags_are_the_defaults():
    assert parse() == {k: v for cls in CLASSES for k, v in vars(cls()).items()}


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--learning_rate", "1e-5"], "learning_rate", 1e-5),
        (["--learning_rate=2e-6"], "learning_rate", 2e-6),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--max_prompt_length", "12"], "max_prompt_length", 12),
        (["--epsilon_high", "0.28"], "epsilon_high", 0.28),
        (["--loss_type", "grpo"], "loss_type", "grpo"),
        (["--dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--bf16"], "bf16", True),
        (["--bf16", "true"], "bf16", True),
        (["--shuffle_dataset", "false"], "shuffle_dataset", False),
        (["--shuffle_dataset", "No"], "shuffle_dataset", False),
        (["--use_value_network=0"], "use_value_network", False),
        (["--hub_private_repo"], "hub_private_repo", True),
        (["--reward_weights", "1", "0.5"], "reward_weights", [1.0, 0.5]),
        (["--reward_funcs", "format", "a.b:c"], "reward_funcs", ["format", "a.b:c"]),
        (["--reward_funcs=format,a.b:c"], "reward_funcs", ["format", "a.b:c"]),
        (["--lora_target_modules", "q,", "v"], "lora_target_modules", ["q", "v"]),
        (["--lora_target_modules", '["q", "v"]'], "lora_target_modules", ["q", "v"]),
        (["--reward_weights", "1,", "0.5"], "reward_weights", [1.0, 0.5]),
        (["--lora-r", "8"], "lora_r", 8),
        (["--entropy-percentile=0.1"], "entropy_percentile", 0.1),
        (["--learning-rate=1e-5"], "learning_rate", 1e-5),
        (["--system_prompt=--a-b"], "system_prompt", "--a-b"),
        (["--dataset_kwargs", '{"size": 3}'], "dataset_kwargs", {"size": 3}),
        (["--model_init_kwargs", '{"a": [1, null]}'], "model_init_kwargs", {"a": [1, None]}),
    ],
)
def test_a_flag_sets_its_field_and_no_other(argv, name, value):
    got, default = parse(*argv), parse()
    assert got[name] == value
    assert type(got[name]) is type(value)
    assert {k for k in got if got[k] != default[k]} <= {name}


def test_a_bare_switch_does_not_swallow_the_next_flag():
    got = parse("--bf16", "--use_cpu", "--beta", "0.1")
    assert (got["bf16"], got["use_cpu"], got["beta"]) == (True, True, 0.1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learning_rat", "1"], ["--learning_rat;", "did you mean learning_rate?"]),
        (["--entropy-percent=0.1"], ["did you mean entropy_percentile?"]),
        (["--model", "m"], ["unknown argument --model; did you mean model_name_or_path?"]),
        (["--lr=1"], ["did you mean learning_rate?"]),
        (["--lora-rank=8"], ["did you mean lora_r?"]),
        (
            ["--deepspeed", "ds.json"],
            ["--deepspeed; models are sharded by FSDP2 instead: acc"],
        ),
        (["--fsdp_config=x"], ["give it to accelerate launch"]),
        (
            ["--model=m", "--lr", "1"],
            ["arguments --model=m (did you mean model_name_or_path?), --lr"],
        ),
        (["--reward_weights", "1,x"], ["--reward_weights", "'1,x' is not float"]),
        (["--konfig", "x.yaml"], ["did you mean config?"]),
        (["--learning"], ["unknown argument --learning"]),  # no abbreviations
        (["--zzzzqqq"], ["--help lists all"]),
        (["stray"], ["unknown argument stray"]),
        (["--bf16", "maybe"], ["--bf16", "'maybe' is neither true nor false"]),
        (["--learning_rate", "fast"], ["--learning_rate", "fast"]),
        (["--learning_rate"], ["--learning_rate", "expected one argument"]),
        (["--num_generations", "2.5"], ["--num_generations", "2.5"]),
        (["--loss_type", "ppo"], ["--loss_type", "ppo", "dr_grpo"]),
        (["--dataset_kwargs", "{size: 3}"], ["--dataset_kwargs", "is not JSON"]),
        (["--dataset_kwargs", "[3]"], ["is not a JSON object"]),
    ],
)
def test_flags_that_are_wrong_say_what_is_right(refused, argv, words):
    message = refused(*argv)
    for word in words:
        assert word in message


def test_help_lists_every_flag_and_ends_well(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in [*FIELDS, "config", "version"]:
        assert f"--{name} " in text, name
    assert "%%" not in text  # a doubled per cent sign is argparse's business, not the reader's
    assert "5 % to" not in text


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"spo {spo.__version__}\n"


def test_help_imports_nothing_that_takes_long():
    heavy = "{'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    code = f"import sys, train_spo\ntry: train_spo.main(['--help'])\nfinally: print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.stdout.decode().splitlines()[-1] == "set()"


# --- recipes --------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_defaults(recipe):
    path = recipe(
        "learning_rate: 1.0e-5\nbeta: 0.1\nbf16: true\nreward_funcs: [format, math_verify]\n"
        "value_model_path: null\ndataset_kwargs: {size: 3}\n"
    )
    got = parse("--config", path, "--beta", "0", "--bf16", "false", "--reward_funcs", "format")
    assert got["learning_rate"] == 1e-5
    assert got["beta"] == 0
    assert got["bf16"] is False
    assert got["reward_funcs"] == ["format"]
    assert got["dataset_kwargs"] == {"size": 3}
    assert got["lam"] == SPOConfig().lam


def test_one_value_makes_a_list_of_one(recipe):
    got = parse("--config", recipe("reward_funcs: math_verify\nreward_weights: 2.0\n"))
    assert got["reward_funcs"] == ["math_verify"]
    assert got["reward_weights"] == [2.0]
    assert parse("--config", recipe("reward_funcs: null\n"))["reward_funcs"] is None
    got = parse("--config", recipe("reward_funcs: format, math_verify\n"))
    assert got["reward_funcs"] == ["format", "math_verify"]


def test_the_default_recipe_is_read_only_where_nothing_else_is_named(recipe):
    default = recipe("beta: 0.5\n", "default.yaml")
    other = recipe("lam: 0.5\n", "other.yaml")
    assert parse(recipe=default)["beta"] == 0.5
    assert parse("--lam", "0.9", recipe=default)["beta"] == 0.5
    assert parse("--config", other, recipe=default)["beta"] == 0.0
    assert parse("--model_name_or_path", "m", recipe=default)["beta"] == 0.0


def test_an_empty_recipe_changes_nothing(recipe):
    assert parse("--config", recipe("# nothing yet\n")) == parse()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learnin_rate: 1.0\n", ["unknown key 'learnin_rate'", "did you mean learning_rate?"]),
        ("zzzzqqq: 1\n", ["unknown key 'zzzzqqq'", "--help lists all"]),
        ("1: 2\n", ["unknown key 1"]),
        ("lr: 1\nbeta: 0\nmodel: m\n", ["keys 'lr' (did you mean learning_rate?), 'model' (did"]),
        ("a: [1, 2\n", ["is not valid YAML"]),
        ("- beta\n", ["must be a mapping"]),
        ("just words\n", ["must be a mapping"]),
    ],
)
def test_recipes_that_are_wrong_say_where_and_what(refused, recipe, text, words):
    path = recipe(text)
    message = refused("--config", path)
    for word in [*words, path]:
        assert word in message


@pytest.mark.parametrize("name", ["gsm8k.yaml", "recipes/gsm8k.yaml"])
def test_recipes_that_come_with_spo_are_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = parse("--config", name, recipe=train_spo.QUICKSTART)
    assert got["dataset_name"] == "openai/gsm8k"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("dataset_name: mine\n")
    assert parse("--config", name, recipe=train_spo.QUICKSTART)["dataset_name"] == "mine"


def test_a_recipe_that_does_not_exist(refused):
    assert "recipe nowhere.yaml does not exist" in refused("--config", "nowhere.yaml")


def test_scientific_notation_that_yaml_reads_as_text(refused, recipe):
    path = recipe("learning_rate: 1e-5\nmodel_name_or_path: m\n")
    with pytest.raises(ValueError, match=r"'1e-5' is text, not float .*write 1\.0e-5"):
        parse("--config", path)
    message = refused("--config", path, run=lambda *argv: train_spo.main(list(argv)))
    assert "write 1.0e-5" in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model_name_or_path", "m"], "--dataset_name is missing"),
        (["--model_name_or_path", "m", "--dataset_name", "d"], "--reward_funcs is missing"),
        (["--load_in_4bit"], "add --use_peft"),
        (["--load_in_4bit", "--load_in_8bit", "--use_peft"], "choose one"),
        (["--bf16", "--fp16"], "choose one"),
    ],
)
def test_the_script_turns_settings_that_clash_into_one_line(refused, argv, words):
    message = refused(*argv, run=lambda *argv: train_spo.main(list(argv)))
    assert words in message
    assert message.count("\n") == 1


# --- documentation --------------------------------------------------------------------------------


def test_the_table_of_flags_has_one_row_each_with_its_default():
    rows = [line for line in options_table(CLASSES).splitlines() if line.startswith("| `")]
    assert len(rows) == len(FIELDS)
    for row, name in zip(rows, FIELDS, strict=True):
        flag, default, _ = row.strip("| ").replace("\\|", "").split(" | ", 2)
        assert flag == f"`{name}`"
        default = json.loads(default.strip("`"))
        assert default == next(
            getattr(cls(), name) for cls in CLASSES if name in cls.__dataclass_fields__
        )
