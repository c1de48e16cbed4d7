"""Models that cannot be trained are refused in one sentence, and what would go wrong unseen is not
let in: dropout of the base, a reference that moves, an adapter that is not seen."""

import numpy as np
import pytest
import tiny
import tiny_runs as runs
import torch
import transformers
from datasets import Dataset
from families import tiny_family
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from test_models import output, stir
from transformers import AutoConfig

from spo.networks import build
from spo.networks.batching import MicroBatch
from spo.networks.checks import check_causal_config, check_lengths
from spo.networks.logits import LogitTransform
from spo.networks.network import Network, Numerics


def build_tiny(model_class: str, model_type: str, **settings):
    """A model of transformers that is no family of the matrix; weights of a size at which tokens
    tell on each other, as trained ones do."""
    sizes = {
        "initializer_range": 0.3,
        "vocab_size": tiny.VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "pad_token_id": tiny.PAD,
    }
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **sizes | settings)
        return getattr(transformers, model_class)(config)


def encoder_decoder():
    config = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=tiny.VOCAB_SIZE, **config)
    )


# --- heads -----------------------------------------------------------------------------------
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "transform"),
    [
        ("llama", LogitTransform()),
        ("gemma2", LogitTransform(softcap=30.0)),
        ("cohere2", LogitTransform(scale=0.0625)),
        ("granite", LogitTransform(scale=1 / 3)),
        ("falcon_h1", LogitTransform(scale=0.5)),
        ("minicpm3", LogitTransform(scale=1 / 8)),  # scales the states before its head
    ],
)
def test_scale_and_cap_are_measured_exactly_at_any_precision(family, transform, dtype, precision):
    """However small the logits of an untrained model are."""
    model = tiny_family(family, logit_size=1e-3)
    measured = build.build_policy(model.to(dtype), numerics=Numerics(precision)).logit_transform
    assert measured.softcap == pytest.approx(transform.softcap)
    assert measured.scale == pytest.approx(
        transform.scale, rel=1e-3 if dtype.itemsize == 2 else 1e-6
    )


def test_logits_that_are_bent_otherwise_are_refused():
    model = runs.policy()
    model.lm_head.register_forward_hook(lambda *args: args[-1] + 0.01 * args[-1].square())
    with pytest.raises(ValueError, match="not one linear head"):
        build.build_policy(model)


# --- models that are none ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (encoder_decoder, "is an encoder-decoder model"),
        (lambda: build_tiny("BertLMHeadModel", "bert"), "not one linear head"),
        (
            lambda: build_tiny("BertGenerationDecoder", "bert-generation", is_decoder=False),
            "lets a token see the tokens after it",
        ),
        (
            lambda: build_tiny("RwkvForCausalLM", "rwkv", attention_hidden_size=32),
            "takes no key-value cache",
        ),
        (
            lambda: build_tiny("ModernBertDecoderForCausalLM", "modernbert-decoder"),
            "not one linear head",
        ),
        (
            lambda: build_tiny(
                "MixtralForCausalLM", "mixtral", num_local_experts=2, output_router_logits=True
            ),
            "asks for its router's auxiliary loss",
        ),
    ],
)
def test_policies_that_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        build.build_policy(model().eval())


def test_a_decoder_that_forgets_its_cache_is_refused(monkeypatch):
    model = runs.policy()
    forward = type(model.model).forward

    def swallow(self, past_key_values=None, attention_mask=None, position_ids=None, **kwargs):
        return forward(self, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", swallow)
    with pytest.raises(ValueError, match="does not go on from its cache"):
        build.build_policy(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: build_tiny("BertForSequenceClassification", "bert", num_labels=1),
            "lets a token see the tokens after it",
        ),
        (
            lambda: transformers.BartForSequenceClassification(
                transformers.BartConfig(
                    vocab_size=300,
                    d_model=16,
                    encoder_layers=1,
                    decoder_layers=1,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                    num_labels=1,
                )
            ),
            "is an encoder-decoder model",
        ),
    ],
)
def test_critics_that_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        build.critic_network(model().eval())


@pytest.mark.parametrize(
    ("model_type", "message"),
    [("t5", "encoder-decoder model"), ("vit", "no causal language model of type vit")],
)
def test_a_config_is_refused_before_weights_are_read(model_type, message):
    with pytest.raises(ValueError, match=message):
        check_causal_config(AutoConfig.for_model(model_type), "some/model")


def test_the_advice_about_the_routers_loss_is_taken(tmp_path):
    sizes = {"num_local_experts": 2, "num_key_value_heads": 2}
    model = build_tiny("MixtralForCausalLM", "mixtral", output_router_logits=True, **sizes)
    path = runs.folder(tmp_path / "model", model)
    with pytest.raises(ValueError, match="asks for its router's auxiliary loss"):
        runs.make_trainer(tmp_path / "run", path)
    runs.make_trainer(tmp_path / "run", path, model_init_kwargs={"output_router_logits": False})


def test_lengths_and_tokenizers_that_do_not_fit(tmp_path):
    config = runs.policy().config
    prompts = Dataset.from_dict({"prompt_ids": [[0] * 500, [0]]})
    check_lengths(config, prompts, 12)
    with pytest.raises(ValueError, match="at most 12 or max_prompt_length to 499"):
        check_lengths(config, prompts, 13)
    with pytest.raises(ValueError, match="the model knows 512 positions"):
        runs.make_trainer(tmp_path / "long", max_completion_length=510)
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="tokenizer has 260 tokens, the model embeddings for 259"):
        runs.make_trainer(tmp_path / "large", processing_class=tokenizer)


# --- dropout -----------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon"])
def test_the_bases_dropout_is_off_and_the_adapters_stays(family, capsys):
    """Held by modules (GPT-2), by numbers of modules (OPT) or by the config (Falcon)."""
    settings = {"hidden_dropout": 0.1, "attention_dropout": 0.1} if family == "falcon" else {}
    if family == "falcon":
        model = build_tiny("FalconForCausalLM", "falcon", **settings)
    else:
        model = tiny_family(family).float()
    ids = torch.tensor([[70, 80, 90, 100]])
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)
    lora = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.5, "task_type": "CAUSAL_LM"}
    policy = build.build_policy(model, LoraConfig(**lora))
    assert "Dropout of the policy's base is off" in capsys.readouterr().out
    policy.train()
    with torch.no_grad():
        assert torch.equal(policy.model(ids).logits, policy.model(ids).logits)
        stir(policy.trainable)
        assert not torch.equal(policy.model(ids).logits, policy.model(ids).logits)
    assert policy.has_dropout


def test_at_learning_rate_0_no_ratio_moves(tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run", tiny_family("gpt2", 1.0).float(), learning_rate=0.0, num_iterations=2
    )
    assert trainer.train().metrics["spo/clip_fraction"] == 0


# --- padding -----------------------------------------------------------------------------------
def test_a_pad_token_without_an_embedding_makes_no_nan():
    """Gemma 3n takes a norm of it, which has no gradient at 0."""
    model = tiny_family("gemma3n_text").float()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.data[0] = 0.0
    policy = build.build_policy(model)
    prompts, completions = [[70, 71, 72, 73], [80, 81], [80, 81]], [[90, 91], [92], [93]]
    for share_prompts in (False, True):
        batch = MicroBatch.build(
            np.arange(3), prompts, completions, torch.device("cpu"), share_prompts
        )
        policy(batch, "logprobs").sum().backward()
        assert all(p.grad.isfinite().all() for p in policy.trainable if p.grad is not None)


# --- adapters ----------------------------------------------------------------------------------
def ia3():
    return IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    )


@pytest.mark.parametrize("adapter", [ia3, lambda: LoraConfig(**runs.LORA)])
def test_the_reference_is_what_the_adapter_says_and_not_what_it_is_called(adapter):
    fresh = build.build_policy(runs.policy(), adapter())
    assert build.build_reference(fresh).adapter == ""  # the base itself
    tuned = get_peft_model(runs.policy(), adapter())
    stir([p for p in tuned.parameters() if p.requires_grad])
    policy = build.build_policy(tuned)
    before = output(policy)
    reference = build.build_reference(policy)
    assert torch.equal(output(reference), before)
    stir(policy.trainable, seed=1)
    assert torch.equal(output(reference), before)
    assert (output(policy) - before).abs().max() > 0.1


def test_an_adapter_on_a_few_rows_of_the_embedding_is_not_fresh():
    """Rows that no probe of random tokens meets."""
    settings = runs.LORA | {"target_modules": ["embed_tokens"]}
    tuned = get_peft_model(runs.policy(), LoraConfig(**settings))
    (down,) = (p for n, p in tuned.named_parameters() if "lora_embedding_A" in n)
    assert build.build_reference(build.build_policy(tuned)).adapter == ""
    down.data[:, 200] = 1.0
    policy = build.build_policy(tuned)
    assert build.build_reference(policy).adapter == build.REFERENCE


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_a_shared_base_are_not_trained(bias, tmp_path):
    def trainer(name, **settings):
        adapter = LoraConfig(**runs.LORA | {"bias": bias})
        model = tiny_family("gpt_neox").float()
        return runs.make_trainer(tmp_path / name, model, peft_config=adapter, **settings)

    with pytest.raises(ValueError, match=r"which the reference .* shares; set bias='none'"):
        trainer("reference", beta=0.1)
    with pytest.raises(ValueError, match=r"which the critic shares; set bias='none'"):
        trainer("critic", value_model="policy")
    trainer("alone").train()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_bias_of_an_adapter_is_sampled_with(family):
    """Merged where the base has a bias to add it to, else not merged."""
    model = tiny_family(family).float()
    policy = build.build_policy(model, LoraConfig(**runs.LORA | {"lora_bias": True}))
    stir(policy.trainable)
    expected = output(policy)
    with policy.merged(), torch.no_grad():
        merged = output(Network(policy.model, policy.head))
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(output(policy), expected)


def test_an_adapter_that_a_mamba_scan_does_not_see_is_refused():
    model = tiny_family("bamba").float()
    policy = build.build_policy(model, LoraConfig(**runs.LORA))
    adapted = [name for name, _ in policy.model.named_parameters() if "lora_A" in name]
    assert any("mamba.in_proj" in name for name in adapted)
    assert not any("mamba.out_proj" in name for name in adapted)
    settings = runs.LORA | {"target_modules": ["out_proj"]}
    with pytest.raises(ValueError, match=r"mamba.out_proj is not seen"):
        build.build_policy(tiny_family("bamba").float(), LoraConfig(**settings))


def test_a_critic_beside_adapted_experts_is_on_the_other_layers(tmp_path):
    trainer = runs.make_trainer(
        tmp_path / "run",
        tiny_family("qwen3_moe", 1.0),
        peft_config=LoraConfig(**runs.LORA),
        value_model="policy",
    )
    names = [n for n, _ in trainer.model.named_parameters()]
    assert any("experts" in n and "lora_A.default" in n for n in names)
    assert any("self_attn" in n and "lora_A.critic" in n for n in names)
    assert not any("experts" in n and "critic" in n for n in names)
    trainer.train()
    loaded = PeftModel.from_pretrained(tiny_family("qwen3_moe", 1.0), tmp_path / "run")
    policy = build.build_policy(loaded)
    with pytest.raises(ValueError, match="no second adapter on experts' weights"):
        build.build_reference(policy)
