"""The estimate against what a real model holds and saves."""

import json
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import tiny_runs as runs
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama, tiny_reward_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTJModel,
    LlamaConfig,
    OPTConfig,
)

import train_spo
from spo import SPOConfig
from spo.networks import build
from spo.networks.batching import MicroBatch
from spo.networks.graph import UnpredictableModelError, graph_bytes, meta_model, saved_bytes
from spo.networks.loading import load_policy, lora_config
from spo.networks.memory import (
    FREE_RESERVE,
    GIB,
    MemoryEstimate,
    estimate_memory,
    estimate_run,
)
from spo.networks.network import transformer

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


PASSES = {
    "lora": {"peft_config": LoraConfig(**runs.LORA), "value_model": "policy"},
    "lora in 16 bits": {"peft_config": LoraConfig(**runs.LORA), "bf16": True},
    "full": {},
    "full in 16 bits": {"bf16": True},
    "checkpointed": {"bf16": True, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("critic", [False, True])
def test_the_graph_that_is_counted_is_the_trainers(name, critic, tmp_path, monkeypatch):
    """Bytes by saved-tensor hooks: the learner's pass over a micro-batch, and the prediction."""
    monkeypatch.setattr("spo.optimizers.resolve_precision", as_asked)
    given = PASSES[name]
    if critic and "value_model" not in given:
        given = given | {"value_model": tiny_reward_model(hidden_size=64)}
    model = tiny_llama(hidden_size=64, layers=3)
    if "peft_config" in given and given.get("bf16"):
        model = model.bfloat16()
    trainer = runs.make_trainer(tmp_path / "run", model, **given)
    network = trainer.critic.network if critic else trainer.policy
    rows, prompt, completion = 4, 16, 32
    ids = [[1] * prompt] * rows, [[2] * completion] * rows
    batch = MicroBatch.build(np.arange(rows), *ids, torch.device("cpu"))
    real = saved_bytes(network, batch, "values" if critic else "logprobs").total

    dtype = transformer(network.model).dtype
    counted = meta_model(transformer(network.model).config, dtype, critic=critic)
    if not critic and network.adapter:
        counted = get_peft_model(counted, given["peft_config"])
    if critic and network.adapter:  # a second adapter, whose graph is the policy's at most
        assert real < saved_bytes(trainer.policy, batch, "logprobs").total
        return
    found = graph_bytes(counted, trainer.args, rows, prompt, completion)
    assert found.total == pytest.approx(real, rel=0.01)


def as_asked(bf16, fp16, device):
    """bfloat16 where this CPU has no arithmetic for it, too: only sizes count here."""
    return "bf16" if bf16 else "no", None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot be reset")
def test_measured_peaks_are_within_a_tenth_where_glibc_keeps_nothing():
    settings = {f"MALLOC_{name}_": "65536" for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")}
    script = runs.REPO / "tests" / "measured_peaks.py"
    done = subprocess.run(
        [sys.executable, script], env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peaks = json.loads(done.stdout)
    assert len(peaks) == 4  # LoRA and all weights, without and with gradient checkpointing
    for peak in peaks:
        assert peak["predicted"] == pytest.approx(peak["measured"], rel=0.1)
        assert peak["measured"] > 40 * 2**20, "too little to measure"


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
    head = CONFIG.vocab_size * CONFIG.hidden_size * 4
    assert estimate().reference_and_critic == estimate().weights - head  # a copy of the decoder


def test_the_table_says_which_cards_fit():
    assert "fits cards of: 8 GB, 12 GB" in estimate(lora_config(4, 8)).table()


def test_a_card_too_small_is_told_by_how_much_and_what_to_change():
    plan = estimate(lora_config(4, 8))
    need = plan.peak + FREE_RESERVE * GIB
    plan.check_card(need)
    with pytest.raises(ValueError, match=r"needs about .* too little; \w+ "):
        plan.check_card(need - 0.5 * plan.peak)
    with pytest.warns(UserWarning, match="too little"):
        plan.check_card(need - 0.1 * plan.peak)


def test_the_remedy_is_for_the_largest_part():
    sizes = dict.fromkeys((field.name for field in fields(MemoryEstimate)), 1.0) | {"vllm": None}
    for part, remedy in (("weights", "load_in_4bit"), ("activations", "gradient_checkpointing")):
        plan = MemoryEstimate(**sizes | {part: 50 * GIB})
        with pytest.raises(
            ValueError, match=f"this card has 8.0 free: 42.4 too little; use --{remedy}"
        ):
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
    if other.model_type == "opt" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("OPT looks at its numbers there, and cannot be predicted")
    other.save_pretrained(tmp_path)
    plan = estimate_of(tmp_path)
    model = AutoModelForCausalLM.from_config(other)
    assert plan.weights == sum(p.nbytes for p in model.parameters())
    assert plan.activations > 0


def test_a_model_that_looks_at_its_numbers_cannot_be_predicted(tmp_path, monkeypatch):
    def looks(self, input_ids, **kwargs):  # as GPT-J did by itself up to Transformers 5.23
        return input_ids.sum().item()

    monkeypatch.setattr(GPTJModel, "forward", looks)
    GPTJConfig(n_embd=32, n_layer=2, n_head=2, rotary_dim=8, vocab_size=64).save_pretrained(
        tmp_path
    )
    with pytest.raises(UnpredictableModelError, match="GPTJForCausalLM cannot be predicted"):
        estimate_of(tmp_path)
    arguments = train_spo.ModelArguments(model_name_or_path=str(tmp_path))
    with pytest.warns(UserWarning, match="cannot be predicted"):
        train_spo.check_card(arguments, config(), 8 * GIB)
