"""recipes/*.yaml: every key is a flag, the settings fit together, and none needs another flag."""

import ast
import re
from pathlib import Path

import pytest

import train_spo
from spo.cli import Parser
from spo.config import SPOConfig
from spo.rewards.functions import load_reward_functions

ROOT = Path(train_spo.__file__).parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
CLASSES = (train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig)
RECOMMENDED = {
    "entropy_percentile": 0.2,
    "normalize_advantages": False,
    "positive_nll_coef": 0.5,
    "beta": 0.01,
}
"""Of every mode that benchmarks/learning.py compares as SPO."""
EXCEPTIONS = {("tldr", "positive_nll_coef")}


def read(path: Path, *flags: str):
    return Parser(CLASSES).parse(["--config", str(path), *flags])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_valid(path):
    model, script, args = read(path)
    train_spo._check_required(model, script)
    has_critic = args.wants_critic(args.wants_value_network)
    args.check_batches(num_processes=1, has_critic=has_critic)
    assert has_critic  # a recipe shows what SPO adds
    load_reward_functions(script.reward_funcs, max_completion_length=args.max_completion_length)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_settings_the_evidence_recommends(path):
    _, _, args = read(path)
    for name, value in RECOMMENDED.items():
        if (path.stem, name) not in EXCEPTIONS:
            assert getattr(args, name) == value, name
    assert args.lam == (0.5 if args.value_reference else 0.8)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_ends_within_days_and_loses_no_more_than_an_hour(path):
    """Many prompts a step, few steps, checkpoints on the way, LoRA at a rate at which it moves."""
    model, _, args = read(path)
    assert args.rollout_batch_size(1) // args.num_generations >= 16
    assert 0 < args.max_steps <= 500
    assert 0 < args.save_steps <= 50
    if model.use_peft:
        assert 1e-5 <= args.learning_rate <= 1e-4


def benchmarked_cards() -> dict[int, dict]:
    """CARDS of benchmarks/memory.py, read without importing it."""
    tree = ast.parse((ROOT / "benchmarks" / "memory.py").read_text())
    values = [n.value for n in tree.body if isinstance(n, ast.AnnAssign) and n.target.id == "CARDS"]
    return ast.literal_eval(values[0])


def test_the_card_recipe_names_the_flags_that_the_memory_benchmark_runs():
    path = ROOT / "recipes" / "card.yaml"
    lines = re.findall(r"^# +(\d+) GB +(--.*)$", path.read_text(), flags=re.M)
    cards = benchmarked_cards()
    assert [int(card) for card, _ in lines] == list(cards)
    for card, flags in lines:
        wanted = cards[int(card)]
        model, _, args = read(path, *flags.split())
        assert model.model_name_or_path == wanted["model_name_or_path"]
        assert args.max_completion_length == wanted.get("max_completion_length", 512)


def test_a_slip_in_a_recipe_names_the_nearest_flag(tmp_path, capsys):
    (tmp_path / "slip.yaml").write_text("learning_rat: 0.1\n")
    with pytest.raises(SystemExit):
        Parser(CLASSES).parse(["--config", str(tmp_path / "slip.yaml")])
    assert "did you mean learning_rate?" in capsys.readouterr().err


def test_a_recipe_finds_its_prompts_in_another_column():
    from datasets import Dataset

    script = train_spo.ScriptArguments(prompt_column="question", system_prompt="Be brief.")
    dataset = Dataset.from_list([{"question": "2+2?", "answer": "4"}])
    row = train_spo.as_prompts(dataset, script)[0]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert row == {"prompt": messages, "answer": "4"}


def test_the_prompt_column_wins_over_one_called_prompt():
    from datasets import Dataset

    script = train_spo.ScriptArguments(prompt_column="question")
    dataset = Dataset.from_list([{"prompt": "old", "question": "2+2?"}])
    with pytest.warns(UserWarning, match="'prompt' is left out: --prompt_column is 'question'"):
        assert train_spo.as_prompts(dataset, script)[0] == {"prompt": "2+2?"}
