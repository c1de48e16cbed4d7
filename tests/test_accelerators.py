"""What only shows on a card, tried without one: 16-bit attention, float16, messages, memory."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_runs as runs
import torch
from peft import LoraConfig
from tiny import byte_tokenizer, tiny_llama
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import train_spo
from spo import SPOConfig, devices, learner
from spo.networks.batching import MicroBatch
from spo.networks.build import build_networks
from spo.optimizers import build_optimizer


@pytest.fixture
def flash(monkeypatch):
    """A model whose attention takes 16 bits only, as the CUDA library does."""

    def attend(module, query, key, value, attention_mask, **kwargs):
        if torch.is_autocast_enabled("cpu"):  # Transformers casts before it calls the library
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if query.dtype.itemsize != 2:
            raise RuntimeError("FlashAttention only supports fp16 and bf16 data type")
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "only_16_bits", attend)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "only_16_bits", sdpa_mask)
    model = runs.policy()
    model.config._attn_implementation = "only_16_bits"
    return model


def test_all_weights_train_with_an_attention_that_takes_16_bits_only(flash, tmp_path, monkeypatch):
    monkeypatch.setattr("spo.optimizers.resolve_precision", lambda *_: ("bf16", None))
    given = {"value_model": "policy", "bf16": True, "beta": 0.1}
    trainer = runs.make_trainer(tmp_path / "run", flash, eval_dataset=runs.prompts(2), **given)
    before = runs.weights_of(trainer)
    trainer.train()
    after = runs.weights_of(trainer)
    assert {name.split(".")[0] for name in before if (before[name] != after[name]).any()} == {
        "policy",
        "critic",
    }


def test_flash_attention_without_16_bits_is_one_sentence(tmp_path):
    model = runs.policy()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="16 bits only, and this run in float32; add --bf16"):
        runs.make_trainer(tmp_path / "run", model)


# --- float16 ---------------------------------------------------------------------------------
def networks(folder, **changes):
    """As SPOTrainer builds them for fp16, which Accelerate refuses on CPUs."""
    args = SPOConfig(fp16=True, num_generations=4, per_device_train_batch_size=8, **changes)
    given = (args, byte_tokenizer(), torch.device("cpu"))
    return build_networks(str(folder), "policy", *given, LoraConfig(**runs.LORA))


def test_lora_in_fp16_holds_its_base_in_float16_and_trains_adapters_in_float32(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    policy, _, critic = networks(tmp_path)
    frozen = {p.dtype for p in policy.model.parameters() if p.requires_grad is False}
    assert torch.float16 in frozen
    assert policy.model.get_input_embeddings().weight.dtype == torch.float16
    assert {p.dtype for n in (policy, critic) for p in n.trainable} == {torch.float32}

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    batch = MicroBatch.build(np.arange(2), [[1, 2]] * 2, [[3, 4, 5]] * 2, torch.device("cpu"))
    for network, want in ((policy, "logprobs"), (critic, "values")):
        optimizer = torch.optim.AdamW(network.trainable, lr=1e-2)
        before = [p.detach().clone() for p in network.trainable]
        with network.active(), network.autocast():
            output = network(batch, want)
        scaler.scale(output.sum()).backward()
        scaler.unscale_(optimizer)
        assert all(p.grad.isfinite().all() for p in network.trainable if p.grad is not None)
        scaler.step(optimizer)
        scaler.update()
        moved = zip(before, network.trainable, strict=True)
        assert any(not torch.equal(a, b) for a, b in moved)


def test_float16_weights_are_not_trained_under_fp16(tmp_path):
    args = SPOConfig(fp16=True, num_generations=4, per_device_train_batch_size=8)
    model = tiny_llama().half()
    with pytest.raises(ValueError, match="fp16 trains weights in float32"):
        build_networks(model, None, args, byte_tokenizer(), torch.device("cpu"))


# --- messages, memory, Apple's GPUs ----------------------------------------------------------
@pytest.mark.parametrize(("bucket", "messages"), [(1000, 1), (50, 4)])
def test_gradients_are_summed_in_few_messages(bucket, messages, monkeypatch):
    sent = []

    def double(tensor):
        sent.append(len(tensor))
        tensor.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", double)
    tensors = [torch.full((3, 5), float(i)) for i in range(12)]
    learner.sum_over_processes(tensors, bucket)
    assert all(torch.equal(t, torch.full((3, 5), 2.0 * i)) for i, t in enumerate(tensors))
    assert (len(sent), sum(sent)) == (messages, 180)


def test_the_script_asks_for_what_the_card_has_free(tmp_path, monkeypatch, capsys):
    """Others hold nearly all of its 24 GiB."""
    runs.script_inputs(tmp_path)
    card = SimpleNamespace(type="cuda")
    module = SimpleNamespace(mem_get_info=lambda device: (2**20, 24 * 2**30))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert devices.free_memory(card) == 2**20
    monkeypatch.setattr(devices, "free_memory", lambda device: 2**20)
    monkeypatch.setattr(train_spo, "load_data", lambda script_args: (runs.prompts(), None))
    flags = [f for f in runs.script_flags(tmp_path / "run") if not f.startswith("--use_cpu")]
    with pytest.raises(SystemExit):
        train_spo.main(flags)
    assert "this card has 0.0 free: 0.4 too little" in capsys.readouterr().err


def test_a_cpu_has_no_free_memory_to_check():
    assert devices.free_memory(torch.device("cpu")) is None


def test_apples_gpus_have_no_8_bit_optimizer():
    weight = SimpleNamespace(device=SimpleNamespace(type="mps"))
    with pytest.raises(ValueError, match="no 8-bit optimizer for Apple's GPUs"):
        build_optimizer(SPOConfig(optim="adamw_8bit"), [weight], 1e-3)
