"""What accelerate launch says is adopted, said or refused; two processes under its FSDP2 recipe."""

import json
import os
import subprocess
import sys

import pytest
import tiny_runs as runs
import torch
from transformers import AutoModelForCausalLM

import train_spo
from spo import SPOConfig, launch
from spo.arguments import ModelArguments, ScriptArguments
from spo.cli import Parser
from spo.errors import ShardedMemoryError
from spo.learner import MicroBatchSize
from spo.networks import sharding
from spo.optimizers import make_accelerator


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed.*recipes/accelerate/fsdp2.yaml"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron.*recipes/accelerate/fsdp2.yaml"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision: fp8"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true"}, "fsdp_activation_checkpointing_offl"),
        ({"FSDP_IGNORED_MODULES": "lm_head"}, "fsdp_ignored_modules"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "TRANSFORMER_BASED_WRAP"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused_in_one_sentence(variables, words, tmp_path, monkeypatch):
    if next(iter(variables)).startswith("FSDP"):
        variables = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | variables
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        runs.make_trainer(tmp_path / "run")


def test_deepspeed_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    """Neither an ImportError of Accelerate's nor a data set that is not there."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    flags = "--model_name_or_path=m --dataset_name=nowhere --reward_funcs=accuracy_reward"
    with pytest.raises(SystemExit):
        train_spo.main(flags.split())
    assert "accelerate launch --config_file recipes/acc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "can_do", "flags", "taken"),
    [
        ("bf16", "bf16", {}, "bf16"),
        ("fp16", "fp16", {}, "fp16"),
        ("no", "no", {"bf16": True}, "bf16"),
        ("bf16", "bf16", {"bf16": True}, "bf16"),
        ("bf16", "fp16", {"fp16": True}, "fp16"),  # an earlier trainer on a card without bfloat16
        ("bf16", "no", {}, "bf16"),  # which make_accelerator then says is computed in float32
    ],
)
def test_the_precision_of_the_launcher_is_taken(asked, can_do, flags, taken, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    args = SPOConfig(**flags)
    launch.adopt_precision(args, can_do)
    assert args.mixed_precision == taken


def test_a_flag_and_the_launcher_that_want_different_precisions_are_an_error(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="mixed_precision: bf16, the flags say --fp16"):
        launch.adopt_precision(SPOConfig(fp16=True), "bf16")


def test_4_bit_products_run_in_the_precision_of_the_launcher(tmp_path, monkeypatch):
    """It has to be known before the model is loaded."""
    runs.script_inputs(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    asked = []
    monkeypatch.setattr("spo.SPOTrainer", lambda **given: asked.append(given))
    flags = [*runs.script_flags(tmp_path / "run"), "--load_in_4bit", "--use_peft"]
    parser = Parser((ModelArguments, ScriptArguments, SPOConfig))
    train_spo.build_trainer(*parser.parse(flags))
    assert asked[0]["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16


def test_the_precision_reaches_the_networks(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr("spo.precision.cpu_has_bf16", lambda: True)
    trainer = runs.make_trainer(tmp_path / "run")
    assert trainer.policy.numerics.mixed_precision == "bf16"


def test_accelerates_gradient_accumulation_does_not_divide_the_loss(tmp_path, monkeypatch, capsys):
    runs.make_trainer(tmp_path / "one").train()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    runs.make_trainer(tmp_path / "two").train()
    assert runs.metrics_of(tmp_path / "one") == runs.metrics_of(tmp_path / "two")
    assert "gradient_accumulation_steps (4) is not used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MASTER_ADDR": "127.0.0.1"}, "starts one process on CPUs"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "they stay whole"),
        ({}, ""),
    ],
)
def test_what_is_done_otherwise_is_said(variables, said, tmp_path, monkeypatch, capsys):
    for name in ("MASTER_ADDR", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    make_accelerator(runs.config(tmp_path))
    printed = capsys.readouterr().out
    assert said in printed if said else not printed


def test_settings_of_fsdp_are_honoured_or_said(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_RESHARD_AFTER_FORWARD": "false",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer, Other",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_ACTIVATION_CHECKPOINTING": "true",
    }.items():
        monkeypatch.setenv(name, value)
    args = SPOConfig()
    said = " ".join(launch.adopt_rest(args))
    assert launch.sharding() == launch.Sharding(frozenset({"LlamaDecoderLayer", "Other"}), False)
    assert args.gradient_checkpointing
    assert "fsdp_state_dict_type is not used" in said
    assert "every process reads the weights" in said
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false", "Transformers reads it"


def test_out_of_memory_that_no_process_can_mend_alone_says_what_to_do():
    lengths = torch.tensor([10, 30]).numpy()
    error = MicroBatchSize(max_rows=4).too_large(lengths)
    assert isinstance(error, ShardedMemoryError)
    assert "at 60 tokens" in str(error)
    assert "--max_tokens_per_micro_batch 30 --resume_from_checkpoint auto" in str(error)


@pytest.fixture
def alone(monkeypatch):
    """A process group of this process alone."""
    if not torch.distributed.is_initialized():
        address = f"tcp://127.0.0.1:{runs.free_port()}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


def test_what_cannot_be_cut_is_refused(alone):
    with pytest.raises(ValueError, match="no layers in LlamaForCausalLM"):
        sharding.ShardedModel(runs.policy(), set(), launch.Sharding(frozenset({"Other"})))
    model = runs.policy()
    model.lm_head.weight = torch.nn.Parameter(
        torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(ValueError, match=r"cannot cut lm_head\.weight, which is torch\.uint8"):
        sharding.ShardedModel(model, set(), launch.Sharding())


def test_optimizers_of_other_weights_or_kinds_are_refused(alone):
    model = runs.policy()
    before = torch.optim.AdamW(model.parameters())
    sharding.ShardedModel(model, set(), launch.Sharding())
    weights = list(model.parameters())
    with pytest.raises(ValueError, match="put cut weights in the place of"):
        sharding.keep_whole_state(before, weights)
    with pytest.raises(ValueError, match="SGD cannot train weights cut by FSDP2"):
        sharding.keep_whole_state(torch.optim.SGD(weights), weights)


def test_the_recipe_shards_over_two_processes(tmp_path):
    """On CPUs, where Accelerate itself would leave FSDP out and each process alone."""
    runs.script_inputs(tmp_path)
    flags = runs.script_flags(tmp_path / "run", per_device_train_batch_size=4)
    flags += ["--use_cpu=false", "--report_to=tensorboard", "--save_steps=1"]
    launcher = "-m accelerate.commands.launch --config_file recipes/accelerate/fsdp2.yaml "
    launcher += f"--main_process_port {runs.free_port()}"
    done = subprocess.run(
        [sys.executable, *launcher.split(), "train_spo.py", *flags],
        cwd=runs.REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "run/checkpoint-000002/trainer_state.json").read_text())
    assert state["world_size"] == 2
    assert [line["step"] for line in runs.metrics_of(tmp_path / "run")] == [1, 2]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()
    start = runs.policy().state_dict()
    assert all(trained[name].shape == weight.shape for name, weight in start.items())
    assert not torch.equal(trained["lm_head.weight"], start["lm_head.weight"])
