"""spo.config: every refusal and warning, the derived sizes, and that no field is dead."""

import ast
import dataclasses
import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from spo.config import SPOConfig
from spo.options import literal_choices

ROOT = Path(__file__).parents[1]
FIELDS = {field.name: field for field in dataclasses.fields(SPOConfig)}
NUMBERS = {n: f for n, f in FIELDS.items() if f.type.startswith(("int", "float", "list[float"))}


def bounded(low=None, above=None, high=None):
    """Names of the fields with exactly these bounds."""
    wanted = {"low": low, "above": above, "high": high}
    return [n for n, f in FIELDS.items() if wanted.items() <= f.metadata.items()]


# --- defaults -------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers_and_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = SPOConfig()
    assert (config.entropy_percentile, config.vf_coef, config.gamma, config.lam) == (
        0.05,
        0.1,
        1.0,
        0.95,
    )
    assert config.use_value_network
    assert config.normalize_advantages
    assert config.value_model_path is None
    assert config.lam_critic == 1.0


def test_the_resolved_config_is_json_and_makes_the_same_config():
    config = SPOConfig(reward_weights=[1.0, 0.5], model_init_kwargs={"a": 1}, epsilon_high=0.28)
    assert SPOConfig(**json.loads(config.to_json_string())) == config


def test_types_of_torch_are_saved_by_name():
    config = SPOConfig(model_init_kwargs={"dtype": torch.bfloat16})
    assert config.to_dict()["model_init_kwargs"] == {"dtype": "bfloat16"}
    assert config.model_init_kwargs == {"dtype": torch.bfloat16}


def test_defaults_are_not_shared():
    for field in FIELDS.values():
        if field.default_factory is not dataclasses.MISSING:
            assert field.default_factory() is not field.default_factory()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:gamma", "ignore:entropy_percentile")
@pytest.mark.parametrize("name", bounded(low=0, high=1) + bounded(above=0, high=1))
def test_fractions_lie_in_0_1(name):
    for value in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match=rf"{name}=.* must lie in [\[(]0, 1\]"):
            SPOConfig(**{name: value})
    for value in (0.0, 1.0, 1) if name not in bounded(above=0, high=1) else (0.01, 1):
        assert getattr(SPOConfig(**{name: value}), name) == value


def test_a_critic_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"value_layers=.* must lie in"):
        SPOConfig(value_layers=0.0)
    assert SPOConfig(value_layers=0.5).critic_layers(5) == [2, 3, 4]
    assert SPOConfig(value_layers=0.01).critic_layers(5) == [4]
    assert SPOConfig(value_layers=1.0).critic_layers(2) == [0, 1]


@pytest.mark.parametrize("name", bounded(low=1))
def test_sizes_are_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        SPOConfig(**{name: 0})
    assert getattr(SPOConfig(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", bounded(low=0))
def test_amounts_are_not_negative(name):
    with pytest.raises(ValueError, match=f"{name}=-1 must not be negative"):
        SPOConfig(**{name: -1})
    assert getattr(SPOConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(name, value):
    value = [value] if FIELDS[name].type.startswith("list") else value
    with pytest.raises(ValueError, match=f"{name}="):
        SPOConfig(**{name: value})


def test_every_number_but_seeds_and_steps_has_bounds():
    free = {"seed", "max_steps", "reward_weights"}
    assert {n for n in NUMBERS if n in bounded()} == free


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0.0 must be above 0"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1.1"),
        ({"loss_type": "ppo"}, r"loss_type='ppo' is not one of dapo, grpo, bnpo, dr_grpo"),
        ({"advantage_level": "word"}, r"advantage_level='word' is not one of segment, token"),
        ({"scale_rewards": "std"}, r"scale_rewards='std' is not one of group, batch, none"),
        ({"learning_rate": "1e-5"}, r"learning_rate='1e-5' is text, not float .*1\.0e-5"),
        ({"epsilon_high": "0.28"}, r"epsilon_high='0.28' is text"),
        ({"bf16": "yes"}, r"bf16='yes' is text, not bool"),
        ({"gamma": None}, r"gamma=None is not float"),
        ({"num_generations": None}, r"num_generations=None is not int"),
        ({"num_generations": 2.5}, r"num_generations=2.5 is not int"),
        ({"max_prompt_length": 10.0}, r"max_prompt_length=10.0 is not int"),
        ({"learning_rate": [1e-5]}, r"learning_rate=\[1e-05\] is not float"),
        ({"adam_epsilon": 0.0}, r"adam_epsilon=0.0 must be above 0"),
        ({"reward_weights": 1.0}, r"reward_weights=1.0 is not list"),
        ({"model_init_kwargs": [1]}, r"model_init_kwargs=\[1\] is not dict"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16"),
        ({"generation_batch_size": 8, "steps_per_generation": 1}, "set one"),
        ({"delta": 1.2}, r"delta=1.2 must exceed 1 \+ epsilon_high = 1.2"),
        ({"delta": 1.25, "epsilon_high": 0.28}, r"1 \+ epsilon_high = 1.28"),
        ({"segment_value": "mean", "advantage_level": "token"}, "needs advantage_level='segment'"),
        (
            {"value_load_in_4bit": True, "value_load_in_8bit": True, "value_use_peft": True},
            "value_load_in_4bit and value_load_in_8bit",
        ),
        ({"value_load_in_4bit": True}, "add value_use_peft"),
        ({"value_load_in_8bit": True}, "add value_use_peft"),
        ({"value_use_peft": True}, "value_use_peft is for a critic named by path"),
        ({"value_use_peft": True, "value_model_path": "policy"}, "value_model_path='policy'"),
        ({"kl_in_reward": True}, "kl_in_reward needs beta > 0"),
        ({"push_to_hub": True}, "push_to_hub needs hub_model_id or output_dir"),
    ],
)
def test_settings_that_clash_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        SPOConfig(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"delta": 1.3},
        {"delta": 1.1, "epsilon_high": 0.0},
        {"value_use_peft": True, "value_model_path": "some/model", "value_load_in_4bit": True},
        {"kl_in_reward": True, "beta": 0.1},
        {"push_to_hub": True, "output_dir": "runs/x"},
        {"push_to_hub": True, "hub_model_id": "me/x"},
        {"segment_value": "mean"},
        {"warmup_steps": 10, "learning_rate": 1},
    ],
)
def test_settings_that_fit_are_taken(settings):
    config = SPOConfig(**settings)
    for name, value in settings.items():
        assert getattr(config, name) == value


def test_scale_rewards_takes_trls_booleans():
    assert SPOConfig(scale_rewards=True).scale_rewards == "group"
    assert SPOConfig(scale_rewards=False).scale_rewards == "none"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"entropy_percentile": 0.51}, "more than half of all tokens"), ({"gamma": 0.99}, "discount")],
)
def test_settings_that_defeat_the_method_warn_where_they_are_written(settings, message):
    with pytest.warns(UserWarning, match=message) as caught:
        SPOConfig(**settings)
    assert caught[0].filename == __file__


# --- derived sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "processes", "rollout", "update", "updates"),
    [
        ({}, 1, 8, 8, 1),
        ({"gradient_accumulation_steps": 4}, 2, 64, 64, 1),
        ({"steps_per_generation": 4, "num_iterations": 3}, 1, 32, 8, 12),
        ({"generation_batch_size": 64, "gradient_accumulation_steps": 2}, 2, 64, 32, 2),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 8}, 1, 16, 2, 8),
    ],
)
def test_batch_sizes(settings, processes, rollout, update, updates):
    config = SPOConfig(**settings)
    assert config.rollout_batch_size(processes) == rollout
    assert config.update_batch_size(processes) == update
    assert config.updates_per_step(processes) == updates


@pytest.mark.parametrize(
    ("warmup_steps", "updates"), [(0, 0), (10, 10), (0.1, 10), (0.005, 1), (1, 1), (0.999, 100)]
)
def test_warmup_is_a_number_of_updates_or_a_fraction_of_them(warmup_steps, updates):
    assert SPOConfig(warmup_steps=warmup_steps).warmup_updates(100) == updates


@pytest.mark.parametrize(
    ("settings", "mixed_precision"),
    [({}, "no"), ({"bf16": True}, "bf16"), ({"fp16": True}, "fp16")],
)
def test_mixed_precision(settings, mixed_precision):
    assert SPOConfig(**settings).mixed_precision == mixed_precision


@pytest.mark.parametrize(
    ("settings", "network", "path"),
    [
        ({}, False, False),
        ({"value_model_path": "policy"}, True, True),
        ({"value_model_path": "policy", "value_features": "none"}, True, False),
        ({"value_model_path": "policy", "use_value_network": False}, False, False),
        ({"value_features": "surprisal"}, False, True),
        ({"value_features": "surprisal", "use_value_network": False}, False, False),
    ],
)
def test_a_critic_is_wanted_where_one_is_named(settings, network, path):
    config = SPOConfig(**settings)
    assert config.wants_value_network == network
    assert config.wants_path_value(has_value_network=network) == path


@pytest.mark.parametrize(
    ("settings", "processes"),
    [
        ({"num_generations": 6}, 1),
        ({"num_generations": 3, "per_device_train_batch_size": 4}, 2),
        ({"generation_batch_size": 40, "gradient_accumulation_steps": 2}, 1),
        ({"generation_batch_size": 7}, 1),
    ],
)
def test_batches_that_do_not_divide_name_sizes_that_would(settings, processes):
    with pytest.raises(ValueError, match="set generation_batch_size to") as error:
        SPOConfig(**settings).check_batches(processes, has_critic=True)
    sizes = [int(number) for number in re.findall(r"\d+", str(error.value).split(";")[-1])]
    assert sizes
    settings = {k: v for k, v in settings.items() if k != "generation_batch_size"}
    for size in sizes:
        SPOConfig(generation_batch_size=size, **settings).check_batches(processes, True)


def test_batches_that_divide_pass():
    SPOConfig().check_batches(1, has_critic=False)
    SPOConfig(
        num_generations=4, generation_batch_size=48, per_device_train_batch_size=6
    ).check_batches(2, has_critic=True)


def test_one_generation_needs_a_critic():
    config = SPOConfig(num_generations=1)
    with pytest.raises(ValueError, match=r"nothing to compare.*value_model_path='policy'"):
        config.check_batches(1, has_critic=False)
    config.check_batches(1, has_critic=True)


# --- no dead field --------------------------------------------------------------------------------


def attributes_read(path, owners):
    """Names X read as OWNER.X or something.OWNER.X in a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        owner = node.value
        owner = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", None)
        if owner in owners:
            names.add(node.attr)
    return names


def read_by_properties():
    """Field -> the properties and methods of SPOConfig that read it, validation left out."""
    tree = ast.parse((ROOT / "spo" / "config.py").read_text(encoding="utf-8"))
    (cls,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "SPOConfig")
    readers = {}
    for function in cls.body:
        if isinstance(function, ast.FunctionDef) and "_check" not in function.name:
            if function.name == "__post_init__":
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self":
                    readers.setdefault(node.attr, set()).add(function.name)
    return readers


def test_every_field_is_read_where_it_can_matter():
    apart = {ROOT / "spo" / "config.py", ROOT / "spo" / "checks.py"}
    files = [p for p in (ROOT / "spo").rglob("*.py") if p not in apart]
    used = set().union(*(attributes_read(p, {"args", "config"}) for p in files))
    used |= attributes_read(ROOT / "train_spo.py", {"args"})
    readers = read_by_properties()
    dead = [
        name
        for name in FIELDS
        if name not in used and not any(reader in used for reader in readers.get(name, ()))
    ]
    assert not dead, f"nothing reads {dead}"


def test_every_field_has_help_and_a_heading():
    for name, field in FIELDS.items():
        assert field.metadata["help"].endswith("."), name
        assert field.metadata["group"], name


def test_literal_choices_are_the_annotations():
    choices = literal_choices(SPOConfig)
    assert choices["importance_sampling_level"] == ("token", "segment", "sequence")
    assert "report_to" not in choices
