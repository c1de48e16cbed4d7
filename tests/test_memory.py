"""The estimate against what a real model holds and saves."""

from dataclasses import fields

import pytest
import torch
from peft import get_peft_model
from tiny import tiny_llama, tiny_reward_model
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig, OPTConfig

import train_spo
from spo import SPOConfig
from spo.networks import build
from spo.networks.loading import load_policy, lora_config
from spo.networks.memory import (
    CARD_RESERVE,
    GIB,
    MemoryEstimate,
    UnpredictableModelError,
    estimate_memory,
    estimate_run,
    meta_model,
)

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def config(**changes) -> SPOConfig:
    settings = {"per_device_train_batch_size": 4, "num_generations": 4}
    return SPOConfig(
        **settings | {"max_completion_length": 32, "value_model_path": "policy"} | changes
    )


def estimate(peft_config=None, **changes):
    return estimate_memory(CONFIG, config(**changes), prompt_length=16, peft_config=peft_config)


def test_weights_and_adapters_are_counted_exactly():
    model = tiny_llama(hidden_size=64)
    args = config(value_layers=1.0)
    found = estimate_memory(model.config, args, prompt_length=8, peft_config=lora_config(4, 8))
    assert found.weights == sum(p.nbytes for p in model.parameters())
    policy = build.build_policy(model, lora_config(4, 8))
    assert found.adapters == 2 * sum(p.nbytes for p in policy.trainable)


def test_activations_are_what_the_real_forward_pass_saves():
    """Float32, eager arithmetic: the count on the meta device against saved tensors on the CPU."""
    rows, length = 4, 48
    model = tiny_llama(512, hidden_size=64, layers=3).train()
    model.set_attn_implementation("sdpa")
    saved, parameters = {}, {p.data_ptr() for p in model.parameters()}

    def count(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    held = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (held.append(t), count(t))[1], lambda t: t
    ):
        model.base_model(input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=False)
    args = config(max_completion_length=32)
    found = estimate_memory(model.config, args, prompt_length=16)
    working_set = rows * length * (3 * model.config.intermediate_size + 4 * 64) * 4
    assert found.activations - working_set == pytest.approx(sum(saved.values()), rel=0.1)


def test_nothing_is_allocated_for_a_model_of_7b_weights():
    shape = CONFIG.to_dict() | {"hidden_size": 4096, "intermediate_size": 11008}
    shape |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
    del shape["head_dim"]
    model = meta_model(LlamaConfig(**shape), torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) > 6e9
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "part", "smaller"),
    [
        ({"gradient_checkpointing": True}, "activations", True),
        ({"per_device_train_batch_size": 8}, "activations", False),
        ({"max_tokens_per_micro_batch": 48}, "activations", True),
        ({"logits_chunk_size": 64}, "logits", True),
        ({"optim": "adamw_8bit"}, "optimizer", True),
        ({"use_value_network": False}, "adapters", True),
        ({"per_device_generation_batch_size": 1}, "generation", True),
    ],
)
def test_each_setting_moves_its_part(changes, part, smaller):
    peft = lora_config(4, 8)
    before, after = getattr(estimate(peft), part), getattr(estimate(peft, **changes), part)
    assert (after < before) if smaller else (after > before)


def test_a_shared_critic_costs_an_adapter_and_not_a_model():
    with_critic = estimate(lora_config(4, 8))
    without = estimate(lora_config(4, 8), use_value_network=False)
    assert with_critic.weights == without.weights
    assert with_critic.activations == without.activations  # the two graphs take turns
    assert estimate().reference_and_critic == estimate().weights  # full fine-tuning: a copy


def test_the_table_says_which_cards_fit():
    assert "fits cards of: 8 GB, 12 GB" in estimate(lora_config(4, 8)).table()


def test_a_card_too_small_is_told_by_how_much_and_what_to_change():
    plan = estimate(lora_config(4, 8))
    need = plan.peak + CARD_RESERVE * GIB
    plan.check_card(need)
    with pytest.raises(ValueError, match=r"needs about .* too little; \w+ "):
        plan.check_card(need - 0.5 * plan.peak)
    with pytest.warns(UserWarning, match="too little"):
        plan.check_card(need - 0.1 * plan.peak)


def test_the_remedy_is_for_the_largest_part():
    sizes = dict.fromkeys((field.name for field in fields(MemoryEstimate)), 1.0)
    for part, remedy in (("weights", "load_in_4bit"), ("activations", "gradient_checkpointing")):
        plan = MemoryEstimate(**sizes | {part: 50 * GIB})
        with pytest.raises(ValueError, match=f"this card has 8.0: 42.9 too little; use --{remedy}"):
            plan.check_card(8 * GIB)


# --- runs by name ----------------------------------------------------------------------------
def estimate_of(name, peft_config=None, loading=None, **changes):
    return estimate_run(
        str(name), config(**changes), peft_config, bits=None, nested=False, loading=loading or {}
    )


def test_the_type_asked_for_is_counted(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    full, half = (estimate_of(tmp_path, loading={"dtype": d}) for d in ("float32", "float16"))
    assert half.weights == full.weights / 2
    assert estimate_of(tmp_path, lora_config(4, 8), bf16=True).weights == full.weights / 2
    assert estimate_of(tmp_path, loading={"dtype": "auto"}).weights == full.weights


def test_a_critic_with_weights_of_its_own_is_counted(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "policy")
    tiny_reward_model(layers=4).save_pretrained(tmp_path / "reward")
    policy, peft = tmp_path / "policy", lora_config(4, 8)
    decoder = sum(p.nbytes for p in tiny_reward_model(layers=4).model.parameters())
    trained, frozen = (
        estimate_of(
            policy, peft, value_model_path=str(tmp_path / "reward"), value_use_peft=use_peft
        )
        for use_peft in (False, True)
    )
    shared = estimate_of(policy, peft)
    assert trained.reference_and_critic == pytest.approx(decoder, rel=0.2)
    assert frozen.reference_and_critic == trained.reference_and_critic
    assert trained.gradients > decoder > frozen.gradients > 0
    assert shared.reference_and_critic == 0
    assert trained.activations > shared.activations  # four layers instead of two


def test_an_adapter_to_go_on_with_is_counted_as_a_fresh_one(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    base = load_policy(str(tmp_path / "base"))
    get_peft_model(base, lora_config(4, 8)).save_pretrained(tmp_path / "adapter")
    assert estimate_of(tmp_path / "adapter") == estimate_of(tmp_path / "base", lora_config(4, 8))


@pytest.mark.parametrize(
    "other",
    [
        GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64),
        OPTConfig(
            hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
        ),
    ],
    ids=["gpt2", "opt"],
)
def test_other_families_call_their_widths_otherwise(other, tmp_path):
    other.save_pretrained(tmp_path)
    plan = estimate_of(tmp_path)
    model = AutoModelForCausalLM.from_config(other)
    assert plan.weights == sum(p.nbytes for p in model.parameters())
    assert plan.activations > 0


def test_a_model_that_looks_at_its_numbers_cannot_be_predicted(tmp_path):
    GPTJConfig(n_embd=32, n_layer=2, n_head=2, rotary_dim=8, vocab_size=64).save_pretrained(
        tmp_path
    )
    with pytest.raises(UnpredictableModelError, match="GPTJForCausalLM cannot be predicted"):
        estimate_of(tmp_path)
    arguments = train_spo.ModelArguments(model_name_or_path=str(tmp_path))
    with pytest.warns(UserWarning, match="cannot be predicted"):
        train_spo.check_card(arguments, config(), 8 * GIB)
