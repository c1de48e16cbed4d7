"""Policy, critic and reference: what they share, what they do not, where their values come from."""

import copy

import pytest
import tiny_runs as runs
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model

from spo import SPOConfig
from spo.networks import build
from spo.networks.loading import lora_config
from spo.networks.network import Network, decoder

IDS = torch.tensor([[10, 200, 31, 7, 99]])


def lora_policy(**overrides) -> Network:
    return build.build_policy(runs.policy(), LoraConfig(**runs.LORA | overrides))


def shared_critic(policy: Network) -> Network:
    return build.critic_from_policy(policy, SPOConfig(value_layers=1.0))


def stir(parameters, seed: int = 0) -> None:
    """Random numbers in place of freshly initialised adapters, which change nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def output(network: Network) -> torch.Tensor:
    network.train(False)
    with network.active():
        return network.head(decoder(network.model)(input_ids=IDS).last_hidden_state)


def storages(*networks: Network) -> dict[int, int]:
    """Bytes by address of everything the networks hold."""
    tensors = [t for n in networks for t in (*n.model.parameters(), *n.head.parameters())]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


# --- one base under LoRA ---------------------------------------------------------------------
def test_policy_critic_and_reference_hold_one_copy_of_the_base():
    base = sum(storages(Network(runs.policy(), torch.nn.Identity())).values())
    policy = lora_policy()
    adapter = sum(p.nbytes for p in policy.trainable)
    reference = build.build_reference(policy)
    critic = shared_critic(policy)
    head = critic.head.weight.nbytes
    assert sum(storages(policy, reference, critic).values()) == base + 2 * adapter + head
    assert not {id(p) for p in policy.trainable} & {id(p) for p in critic.trainable}
    assert all("lora" in n for n, p in policy.model.named_parameters() if p.requires_grad)


def test_the_critic_may_learn_in_the_last_layers_only():
    """No gradient reaches the frozen ones below, so their activations are not kept."""
    policy = lora_policy()
    critic = build.critic_from_policy(policy, SPOConfig(value_layers=0.5))
    layers = {
        int(name.split(".layers.")[1].split(".")[0])
        for name, parameter in policy.model.named_parameters()
        if "critic" in name
    }
    assert layers == {1}  # of 0 and 1
    assert 2 * sum(p.numel() for p in critic.trainable[:-1]) == sum(
        p.numel() for p in policy.trainable
    )
    with critic.active():
        states = decoder(critic.model)(input_ids=IDS, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, True]


def test_while_decoding_the_adapter_is_in_the_weights_and_afterwards_nothing_has_moved():
    policy = lora_policy()
    shared_critic(policy)
    stir(policy.trainable)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    expected = output(policy)
    calls = []
    handles = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for name, module in policy.model.named_modules()
        if name.endswith("lora_A.default")
    ]
    assert handles
    policy.train(False)
    with policy.merged(), torch.no_grad():
        merged = policy.head(decoder(policy.model)(input_ids=IDS).last_hidden_state)
    assert not calls  # no product with an adapter was taken
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, output(Network(policy.model, policy.head, "")))
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    assert torch.equal(output(policy), expected)
    assert calls


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_every_kind_of_lora_decodes_in_the_weights_as_it_does_beside_them(kind):
    model = get_peft_model(runs.policy(), LoraConfig(**runs.LORA | kind))
    adapter = tuple(p for p in model.parameters() if p.requires_grad)
    policy = Network(model, model.get_base_model().lm_head, "default", adapter)
    stir(policy.trainable)
    policy.train(False)
    expected = output(policy)
    with policy.merged(), torch.no_grad():
        merged = policy.head(decoder(policy.model)(input_ids=IDS).last_hidden_state)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(output(policy), expected)
    assert not torch.allclose(expected, output(Network(policy.model, policy.head, "")), atol=1e-3)


def test_an_adapter_on_tied_weights_is_not_merged():
    """The head's weight is the embedding's, which must stay what it is."""
    model = runs.policy()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    settings = runs.LORA | {"target_modules": ["lm_head", "q_proj"]}
    policy = Network(get_peft_model(model, LoraConfig(**settings)), model.lm_head, "default")
    weight = model.get_input_embeddings().weight
    with policy.merged():
        assert not any(
            layer.merged for layer in policy.model.modules() if isinstance(layer, BaseTunerLayer)
        )
        assert model.get_input_embeddings().weight is weight


def test_a_new_critic_says_zero_and_has_a_gradient_only_in_its_head():
    policy = lora_policy()
    critic = shared_critic(policy)
    assert not output(critic).any()
    with critic.active():
        critic.head(decoder(critic.model)(input_ids=IDS).last_hidden_state).sum().backward()
    assert critic.head.weight.grad.any()
    assert all(p.grad is None for p in policy.trainable)


def test_adapters_do_not_reach_each_other():
    policy = lora_policy()
    reference, critic = (
        build.build_reference(policy),
        shared_critic(policy),
    )
    base = runs.policy()(IDS).logits
    stir(policy.trainable, seed=1)
    moved = output(policy)
    stir(critic.trainable, seed=2)
    values = output(critic)
    assert torch.equal(output(policy), moved)
    assert (moved - base).abs().max() > 0.1
    stir(policy.trainable, seed=3)
    assert torch.equal(output(critic), values)
    torch.testing.assert_close(output(reference), base)


def test_the_reference_of_a_fine_tuned_adapter_includes_the_adapter():
    tuned = get_peft_model(runs.policy(), LoraConfig(**runs.LORA))
    stir([p for p in tuned.parameters() if p.requires_grad])
    policy = build.build_policy(tuned)
    before = output(policy)
    reference = build.build_reference(policy)
    critic = shared_critic(policy)
    torch.testing.assert_close(output(reference), before)
    stir(policy.trainable, seed=1)
    stir(critic.trainable, seed=2)
    torch.testing.assert_close(output(reference), before)
    assert (output(policy) - before).abs().max() > 0.1
    trained = {id(p) for p in (*policy.trainable, *critic.trainable)}
    names = dict(policy.model.named_parameters())
    assert not any(id(p) in trained for n, p in names.items() if build.REFERENCE in n)


# --- models of their own ---------------------------------------------------------------------
def test_under_full_fine_tuning_each_network_is_a_copy():
    policy = build.build_policy(runs.policy())
    reference, critic = (
        build.build_reference(policy),
        shared_critic(policy),
    )
    assert not output(critic).any()
    with torch.no_grad():
        states = [n.model.base_model(input_ids=IDS).last_hidden_state for n in (policy, critic)]
    torch.testing.assert_close(states[0], states[1])
    before = output(reference)
    stir(policy.trainable)
    assert torch.equal(output(reference), before)
    assert not any(p.requires_grad for p in reference.model.parameters())
    assert not storages(policy).keys() & storages(critic).keys()


def test_a_separate_critic_trains_its_adapter_and_head_only(tmp_path):
    path = runs.folder(tmp_path / "reward", runs.critic())
    args = SPOConfig(value_model_path=path, value_use_peft=True, value_lora_r=2)
    policy = build.build_policy(runs.policy())
    critic = build.build_critic(path, policy, args, byte_tokenizer())
    torch.testing.assert_close(output(critic), runs.critic().score(_states(runs.critic())))
    trained = {id(p) for p in critic.trainable}
    names = [n for n, p in critic.model.named_parameters() if id(p) in trained]
    assert names
    assert all("lora" in name or "score" in name for name in names)
    assert any("score" in name for name in names)


@pytest.mark.parametrize("value_use_peft", [False, True])
def test_a_critic_beside_a_16_bit_base_trains_float32_weights(value_use_peft, tmp_path):
    """Steps of Adam are smaller than bfloat16 can add to a weight."""
    path = runs.folder(tmp_path / "reward", runs.critic())
    args = SPOConfig(value_model_path=path, value_use_peft=value_use_peft)
    policy = build.build_policy(runs.policy().to(torch.bfloat16), LoraConfig(**runs.LORA))
    critic = build.build_critic(path, policy, args, byte_tokenizer())
    assert {p.dtype for p in critic.trainable} == {torch.float32}
    base = {p.dtype for p in critic.model.parameters() if not p.requires_grad}
    assert base == ({torch.bfloat16} if value_use_peft else set())


@torch.no_grad()
def _states(model):
    return model.base_model(input_ids=IDS).last_hidden_state


def test_the_saved_adapter_of_a_shared_critic_comes_back_with_its_values(tmp_path):
    """On the policy's base again, and as a PEFT sequence classifier of anyone's."""
    base = runs.folder(tmp_path / "base")
    flags = {"model": base, "peft_config": lora_config(4, 8), "value_model": "policy"}
    trainer = runs.make_trainer(tmp_path / "run", learning_rate=0.05, **flags)
    trainer.train()
    values = output(trainer.critic.network)
    assert values.abs().max() > 0.01

    flags["value_model"] = str(tmp_path / "run" / "critic")
    again = runs.make_trainer(tmp_path / "again", **flags)
    torch.testing.assert_close(output(again.critic.network), values)
    assert again.critic.network.model is again.policy.model

    alone = AutoPeftModelForSequenceClassification.from_pretrained(
        flags["value_model"], num_labels=1
    )
    loaded = build.critic_network(alone)
    torch.testing.assert_close(output(loaded), values)

    other = runs.folder(tmp_path / "other base")
    with pytest.raises(
        ValueError, match=r"critic adapter in .* belongs to .*base', not to .*other"
    ):
        runs.make_trainer(tmp_path / "wrong", **flags | {"model": other})


# --- what cannot be trained ------------------------------------------------------------------
def two_adapters():
    model = get_peft_model(tiny_llama(), LoraConfig(**runs.LORA))
    model.add_adapter("second", LoraConfig(**runs.LORA))
    return model


@pytest.mark.parametrize(
    ("model", "peft_config", "message"),
    [
        (two_adapters, None, "give a model with one"),
        (
            lambda: get_peft_model(tiny_llama(), LoraConfig(**runs.LORA)),
            LoraConfig(**runs.LORA),
            "already carries an adapter",
        ),
        (
            tiny_llama,
            LoraConfig(**runs.LORA | {"target_modules": ["qkv_proj", "q_proj"]}),
            r"\['qkv_proj'\] match no layer of LlamaForCausalLM.*'k_proj'",
        ),
        (
            tiny_llama,
            LoraConfig(**runs.LORA | {"target_modules": ["q_proj", "lm_head"]}),
            "take the head out of the LoRA targets",
        ),
    ],
)
def test_policies_that_are_refused(model, peft_config, message):
    with pytest.raises(ValueError, match=message):
        build.build_policy(model(), peft_config)


def test_dropout_of_an_adapter_does_not_pass_for_a_scaled_head():
    tuned = get_peft_model(runs.policy(), LoraConfig(**runs.LORA | {"lora_dropout": 0.5}))
    stir(p for p in tuned.parameters() if p.requires_grad)
    tuned.train()
    build.build_policy(tuned)
    assert tuned.training


def test_an_adapter_loaded_for_inference_is_trained_all_the_same(tmp_path):
    base = runs.folder(tmp_path / "base")
    tuned = get_peft_model(runs.policy(), LoraConfig(**runs.LORA))
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(runs.policy(), tmp_path / "adapter")
    assert not any(p.requires_grad for p in loaded.parameters())
    assert len(build.build_policy(loaded).trainable) == len(lora_policy().trainable)
    assert base


def test_networks_are_not_changed_by_looking_at_them():
    """`active` switches adapters; what an optimizer trains must not follow."""
    policy = lora_policy()
    reference, critic = (
        build.build_reference(policy),
        shared_critic(policy),
    )
    stir(policy.trainable)
    before = copy.deepcopy([p.detach() for p in (*policy.trainable, *critic.trainable)])
    for each in (critic, reference, policy, reference, critic):
        output(each)
        assert policy.model.active_adapter == build.POLICY
    after = (*policy.trainable, *critic.trainable)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with policy.active():
        policy.head(decoder(policy.model)(input_ids=IDS).last_hidden_state).sum().backward()
    assert all(p.grad is not None for p in policy.trainable)
    assert all(p.grad is None for p in critic.trainable)


def test_a_critic_needs_one_output():
    with pytest.raises(ValueError, match="3 labels"):
        build.build_critic(
            tiny_reward_model(num_labels=3),
            build.build_policy(tiny_llama()),
            SPOConfig(),
            byte_tokenizer(),
        )
