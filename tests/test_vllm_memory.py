"""The memory that vLLM takes beside the trainer is in the estimate."""

from dataclasses import replace

import pytest
from tiny import tiny_llama

from spo import SPOConfig
from spo.networks.loading import lora_config
from spo.networks.memory import GIB, estimate_memory

COLOCATE = {"use_vllm": True, "vllm_mode": "colocate"}


def estimate(bits=None, **settings):
    args = SPOConfig(max_completion_length=16, bf16=True, **settings)
    model = tiny_llama(hidden_size=128)
    return estimate_memory(
        model.config, args, prompt_length=16, peft_config=lora_config(4, 8), bits=bits
    )


def test_base_adapter_and_the_cache_of_one_completion_stand_twice():
    plan = estimate(**COLOCATE)
    model = tiny_llama(hidden_size=128)
    base = sum(weight.numel() for weight in model.parameters())
    cache = 2 * model.config.num_hidden_layers * 2 * 32 * (16 + 16)  # keys and values, 2 heads
    assert plan.engine == 2 * (base + plan.adapters / 4 + cache)
    assert plan.weights == 2 * base
    assert plan.generation == 0
    assert estimate().engine == 0


def test_a_4_bit_base_stands_twice_in_4_bits():
    half, quarter = estimate(**COLOCATE), estimate(bits=4, **COLOCATE)
    assert half.engine - quarter.engine == half.weights - quarter.weights > 0


def test_cards_that_share_the_weights_have_a_part_each():
    assert (
        estimate(**COLOCATE, vllm_tensor_parallel_size=2).engine == estimate(**COLOCATE).engine / 2
    )


def test_a_server_takes_nothing_of_this_card():
    plan = estimate(use_vllm=True, vllm_mode="server")
    assert plan.engine == plan.generation == 0


def test_asleep_it_leaves_the_card_to_the_update():
    awake, asleep = estimate(**COLOCATE), estimate(**COLOCATE, vllm_enable_sleep_mode=True)
    update = awake.gradients + awake.activations + awake.logits
    share = 0.3 * 8 * GIB
    assert awake.peak_on(8 * GIB) == awake.resident + update + share
    assert asleep.peak_on(8 * GIB) == asleep.resident + share
    assert estimate().peak_on(8 * GIB) == estimate().peak


def test_the_table_names_it_and_counts_its_share_of_each_card():
    plan = estimate(**COLOCATE)
    assert "vLLM, at least" in plan.table()
    assert "fits cards of: 8 GB, 12 GB" in plan.table()
    large = replace(plan, vllm=replace(plan.vllm, needed=6 * GIB))
    assert "fits cards of: 24 GB" in large.table()  # 0.3 of 16 GB are 4.8
    assert "vLLM" not in estimate().table()


def test_a_plan_beyond_the_card_names_what_to_change():
    plan = estimate(**COLOCATE)
    large = replace(plan, vllm=replace(plan.vllm, needed=20 * GIB))
    with pytest.raises(ValueError, match="vllm_enable_sleep_mode"):
        large.check_card(12 * GIB)
