"""The estimate against what a real model holds and saves."""

from dataclasses import fields

import pytest
import torch
from tiny import tiny_llama
from transformers import LlamaConfig

from spo import SPOConfig, models
from spo.loading import lora_config
from spo.memory import CARD_RESERVE, GIB, MemoryEstimate, estimate_memory, meta_model

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
    policy = models.build_policy(model, lora_config(4, 8))
    assert found.adapters == 2 * sum(p.nbytes for p in policy.parameters)


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
