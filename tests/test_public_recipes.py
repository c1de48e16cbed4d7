"""Recipes in the style of TRL's and open-r1's: what each needs until SPO takes it, and two steps.

Models, data and what only a card has are stand-ins; everything else is as the recipe says it.
"""

import json
from pathlib import Path

import pytest
import tiny_runs as runs
import yaml
from datasets import Dataset
from tiny import byte_tokenizer

import train_spo
from spo.trl import RENAMED

RECIPES = Path(__file__).parent / "public_recipes"

EDITS = {
    "math_sft_model": {"reward_funcs": ["accuracy", "format"], "reward_weights": [1.0, 1.0]},
    "cosine_lengths": {"reward_funcs": ["accuracy_reward", "soft_overlong"]},
    "lora_one_card": {},
    "sharded": {"deepspeed": None, "sync_ref_model": None, "hub_token": None},
    "best_of_evaluations": {},
    "dapo": {"top_entropy_quantile": None},
    "notebook_flags": {"neftune_noise_alpha": None},
}
"""Recipe -> what has to be written instead; None: nothing, the line goes."""

LISTS = ("reward_funcs",)
"""Settings that an error names by an entry."""

STAND_INS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_prompt_length": 500,
    "max_steps": 2,
    "bf16": False,
    "fp16": False,
    "dtype": "float32",
    "attn_implementation": "eager",
    "optim": "adamw_torch",
    "load_in_4bit": False,
    "use_vllm": False,
    "push_to_hub": False,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "log_completions": False,
    "gradient_checkpointing": False,
}


@pytest.fixture
def stand_ins(tmp_path):
    """Flags for a recipe: a tiny model, a data set with the column it names, and the above."""
    policy, judge, data = (str(tmp_path / name) for name in ("model", "judge", "data.jsonl"))
    for path, model in ((policy, None), (judge, runs.critic())):
        runs.folder(path, model)
        byte_tokenizer(chat_template=True).save_pretrained(path)

    def flags(recipe):
        column = recipe.get("dataset_prompt_column", "prompt")
        rows = {column: [f"{i} + 1 =" for i in range(8)], "solution": [str(i) for i in range(8)]}
        Dataset.from_dict(rows).to_json(data)
        given = STAND_INS | {"model_name_or_path": policy, "dataset_name": data}
        given |= {"output_dir": str(tmp_path / "run")}
        if "generation_batch_size" in recipe:
            given["generation_batch_size"] = 8
        if "reward_model_name_or_path" in recipe:
            given["reward_funcs"] = judge
        return [f"--{name}={value}" for name, value in given.items()]

    return flags


@pytest.mark.parametrize("name", EDITS)
def test_a_recipe_needs_few_edits_and_each_is_named(name, stand_ins, tmp_path, capsys):
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    edits = dict(EDITS[name])
    assert len(edits) <= 3
    assert edits.keys() <= recipe.keys()
    flags = stand_ins(recipe)
    path = tmp_path / "recipe.yaml"
    while edits:  # do what the message says
        path.write_text(yaml.safe_dump(recipe))
        with pytest.raises(SystemExit):
            train_spo.main(["--config", str(path), *flags])
        message = capsys.readouterr().err.splitlines()[-1]
        named = [s for s in edits if s in message or (s in LISTS and recipe[s][-1] in message)]
        assert named, message
        for setting in named:
            recipe[setting] = edits.pop(setting)
            if recipe[setting] is None:
                del recipe[setting]
    path.write_text(yaml.safe_dump(recipe))
    train_spo.main(["--config", str(path), *flags])
    lines = runs.metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines if "reward" in line][-1] == 2
    kept = json.loads((tmp_path / "run" / "spo_config.json").read_text())
    shared = (recipe.keys() & kept.keys()) - STAND_INS.keys() - {"output_dir", "reward_weights"}
    for setting in shared - {
        "generation_batch_size",
        "scale_rewards",
        "metric_for_best_model",
        "top_k",
    }:
        assert kept[setting] == recipe[setting], setting
    assert kept["warmup_steps"] == recipe.get("warmup_ratio", recipe.get("warmup_steps", 0))


def test_renamed_settings_are_among_those_recipes():
    """Else the table would be all there is to say that they work."""
    used = {key for path in RECIPES.glob("*.yaml") for key in yaml.safe_load(path.read_text())}
    unused = {"activation_checkpointing", "streaming", "dataset_streaming"}
    assert RENAMED.keys() - used <= unused
