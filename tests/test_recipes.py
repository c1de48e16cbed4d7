"""recipes/*.yaml: every key is a flag, the settings fit together, and none needs another flag."""

from pathlib import Path

import pytest

import train_spo
from spo.cli import Parser
from spo.config import SPOConfig
from spo.rewards.functions import load_reward_functions

RECIPES = sorted((Path(train_spo.__file__).parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_valid(path):
    parser = Parser((train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig))
    model, script, args = parser.parse(["--config", str(path)])
    train_spo._check_required(model, script)
    args.check_batches(num_processes=1, has_critic=args.wants_value_network)
    assert args.wants_value_network  # a recipe shows what SPO adds
    load_reward_functions(script.reward_funcs, max_completion_length=args.max_completion_length)


def test_a_slip_in_a_recipe_names_the_nearest_flag(tmp_path, capsys):
    (tmp_path / "slip.yaml").write_text("learning_rat: 0.1\n")
    parser = Parser((train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig))
    with pytest.raises(SystemExit):
        parser.parse(["--config", str(tmp_path / "slip.yaml")])
    assert "did you mean learning_rate?" in capsys.readouterr().err


def test_a_recipe_finds_its_prompts_in_another_column():
    from datasets import Dataset

    script = train_spo.ScriptArguments(prompt_column="question", system_prompt="Be brief.")
    dataset = Dataset.from_list([{"question": "2+2?", "answer": "4"}])
    row = train_spo.as_prompts(dataset, script)[0]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert row == {"prompt": messages, "answer": "4"}
