"""Real bitsandbytes layers on the CPU: 4 and 8 bits, forward, backward, a whole training."""

import copy

import numpy as np
import pytest
import tiny_runs as runs
import torch
from peft import PeftModel
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import AutoModelForCausalLM

from spo import SPOConfig
from spo.networks import build
from spo.networks.loading import load_policy, lora_config, quantization_config
from spo.networks.network import decoder

bnb = pytest.importorskip("bitsandbytes")

IDS = torch.tensor([[10, 200, 31, 7, 99, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model whose layers are a multiple of the quantisation block."""
    path = tmp_path_factory.mktemp("policy")
    tiny_llama(hidden_size=64).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward")
    tiny_reward_model(hidden_size=64).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


def quantized(folder: str, bits: int = 4, **kwargs):
    config = quantization_config(bits, compute_dtype=torch.float32, **kwargs)
    return load_policy(
        folder, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )


def dequantized(model):
    """The same model with plain layers that hold the 4-bit layers' exact values."""
    plain = tiny_llama(hidden_size=64)
    own = plain.state_dict()
    state = {k: v for k, v in model.state_dict().items() if k in own and v.shape == own[k].shape}
    plain.load_state_dict(state, strict=False)
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight, module.weight.quant_state)
            plain.get_submodule(name).weight.data.copy_(
                weight.view(module.weight.quant_state.shape)
            )
    return plain


def adapter_gradients(model) -> dict[str, torch.Tensor]:
    """Of a fixed loss, after a forward pass in eval mode, as sampling makes before every update."""
    network = build.build_policy(model, lora_config(4, 8))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.trainable:
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    network.train(False)
    with network.active(), torch.no_grad():
        decoder(network.model)(input_ids=IDS)
    network.train(True)
    with network.active():
        network.head(
            decoder(network.model)(input_ids=IDS).last_hidden_state
        ).square().mean().backward()
    return {n: p.grad for n, p in network.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("nested", [False, True])
def test_gradients_through_4_bit_layers_are_those_of_the_values_they_hold(folder, nested):
    model = quantized(folder, nested=nested)
    expected = adapter_gradients(dequantized(copy.deepcopy(model)))
    found = adapter_gradients(model)
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_decoders_linear_layers_are_quantised(folder, bits):
    model = quantized(folder, bits)
    layer = bnb.nn.Linear4bit if bits == 4 else bnb.nn.Linear8bitLt
    kinds = {name.rsplit(".", 1)[-1]: type(module) for name, module in model.named_modules()}
    assert kinds["q_proj"] is kinds["down_proj"] is layer
    assert not isinstance(model.lm_head, layer)
    for name in ("model.embed_tokens", "model.norm", "lm_head"):
        assert model.get_submodule(name).weight.dtype == torch.float32


def test_products_with_4_bit_weights_run_in_the_precision_of_the_run(tmp_path):
    for flags, dtype in (
        ({}, "float32"),
        ({"bf16": True}, "bfloat16"),
        ({"fp16": True}, "float16"),
    ):
        args = SPOConfig(**flags)
        config = quantization_config(4, compute_dtype=args.compute_dtype)
        assert config.bnb_4bit_compute_dtype == getattr(torch, dtype)


def test_an_adapter_is_trained_further_on_a_quantised_base(folder, tmp_path):
    runs.make_trainer(tmp_path / "run", folder, peft_config=lora_config(4, 8)).train()
    again = runs.make_trainer(
        tmp_path / "again",
        str(tmp_path / "run"),
        quantization_config=quantization_config(4, compute_dtype="float32"),
    )
    layers = [m for m in again.policy.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    before = runs.weights_of(again)
    assert len(layers) == 14
    assert all(weights.any() for weights in before.values())
    again.train()
    assert not runs.same_bits(runs.weights_of(again), before)


@pytest.mark.parametrize("bits", [4, 8])
def test_policy_and_critic_train_on_one_quantised_base(folder, bits, tmp_path):
    trainer = runs.make_trainer(
        tmp_path,
        folder,
        peft_config=lora_config(4, 8),
        quantization_config=quantization_config(bits),
        value_model_path="policy",
        gradient_checkpointing=True,
        bf16=True,
        beta=0.01,
        max_steps=2,
        eval_dataset=None,
    )
    base = {
        n: p.detach().clone()
        for n, p in trainer.policy.model.named_parameters()
        if "lora" not in n and "default" not in n
    }
    critic = trainer.critic.network
    before = [p.detach().clone() for p in critic.trainable]
    trainer.train()
    for name, parameter in trainer.policy.model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.critic.network.trainable, strict=True)
    )
    lines = runs.metrics_of(tmp_path)
    assert lines[0]["spo/value_mean"] == 0.0
    assert lines[0]["kl"] < 1e-3  # a new adapter is the reference still
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)


def test_a_4_bit_base_is_held_once(folder):
    policy = build.build_policy(quantized(folder), lora_config(4, 8))
    critic, reference = (
        build.critic_from_policy(policy, SPOConfig(value_layers=1.0)),
        build.build_reference(policy),
    )
    owners = {id(n.model) for n in (policy, critic, reference)}
    assert len(owners) == 1
    layers = [m for m in policy.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    addresses = {m.weight.untyped_storage().data_ptr() for m in layers}
    assert len(layers) == len(addresses) == 2 * 7
    assert sum(m.weight.nbytes for m in layers) * 2 == sum(
        m.in_features * m.out_features for m in layers
    )


def test_a_separate_critic_in_4_bits_trains_its_own_adapter(reward_folder, tmp_path):
    trainer = runs.make_trainer(
        tmp_path,
        tiny_llama(hidden_size=64),
        value_model_path=reward_folder,
        value_use_peft=True,
        value_load_in_4bit=True,
        value_learning_rate=1e-2,
        bf16=True,
    )
    assert any(isinstance(m, bnb.nn.Linear4bit) for m in trainer.critic.network.model.modules())
    names = {id(p): n for n, p in trainer.critic.network.model.named_parameters()}
    assert all(
        "lora" in names[id(p)] or "score" in names[id(p)] for p in trainer.critic.network.trainable
    )
    critic = trainer.critic.network
    before = [p.detach().clone() for p in critic.trainable]
    trainer.train()
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.critic.network.trainable, strict=True)
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_a_reward_model_in_few_bits_gives_nearly_the_same_rewards(bits, reward_folder, tmp_path):
    def rewards(name, **settings):
        trainer = runs.make_trainer(
            tmp_path / name, tiny_llama(hidden_size=64), reward_funcs=reward_folder, **settings
        )
        model = trainer.reward_functions[0].call.model
        kinds = {type(m) for m in model.modules()} & {bnb.nn.Linear4bit, bnb.nn.Linear8bitLt}
        texts = [f"{i} and {i}" for i in range(8)]
        return kinds, np.array(trainer.reward_functions[0].call([""] * 8, texts, None))

    kinds, exact = rewards("exact")
    assert not kinds
    kinds, rounded = rewards("rounded", **{f"reward_load_in_{bits}bit": True})
    assert len(kinds) == 1
    assert 0 < np.abs(rounded - exact).max() < 0.5 * np.ptp(exact) + 0.05


@pytest.mark.parametrize("optim", ["adamw_8bit", "adafactor", "adamw_torch_fused"])
def test_optimisers_by_name_move_both_networks(optim, tmp_path):
    trainer = runs.make_trainer(tmp_path, value_model_path="policy", optim=optim, max_steps=2)
    before = [
        p.detach().clone() for n in (trainer.policy, trainer.critic.network) for p in n.trainable
    ]
    trainer.train()
    after = [p for n in networks for p in n.trainable]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) > len(moved) // 2
    assert len(trainer.optimizer.param_groups) == 2


def test_missing_bitsandbytes_is_one_sentence(monkeypatch):
    monkeypatch.setattr("spo.loading.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        quantization_config(4)


def test_a_critic_is_not_quantised_without_an_adapter():
    with pytest.raises(ValueError, match="value_use_peft"):
        SPOConfig(value_model_path="some/reward-model", value_load_in_4bit=True)


def test_a_4_bit_model_repacked_for_inference_is_refused(folder):
    model = quantized(folder).eval()
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    layers[0].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="load it anew"):
        build.build_policy(model, lora_config(4, 8))
