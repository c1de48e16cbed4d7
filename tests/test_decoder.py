"""spo.generation.decoder: the same tokens as the model's modules, with fewer operations."""

from functools import partial

import numpy as np
import pytest
import torch
from families import FAMILIES, SLOW, tiny_family
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from spo.generation.decoder import PlainDecoder, is_plain
from spo.generation.engine import SamplingParams
from spo.generation.sampler import Sampler, sample, uniforms
from spo.networks.build import build_policy
from spo.networks.network import Network
from spo.prompts import PromptBatch

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
PROMPTS = [[65, 66, 67], [65, 66, 67], [70], [71, 72, 73, 74, 75, 76, 77], [80, 81], [90, 91, 92]]
"""Of several lengths, so padded; the longest is longer than the sliding windows."""

ADAPTED = {"all weights": None, "all layers": "all-linear", "some": ["q_proj", "v_proj", "up_proj"]}


def policy(family: str, targets=None, dtype=torch.float32) -> Network:
    """With an adapter that says something, where there are targets."""
    torch.manual_seed(0)
    config = targets and LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    return build_policy(tiny_family(family, logit_size=2.0).to(dtype), config).eval()


def batch(rows: list[int]) -> PromptBatch:
    prompts = [PROMPTS[row] for row in rows]
    texts = ["p"] * len(rows)
    return PromptBatch(1, np.array(rows), np.array(rows), texts, texts, prompts, {})


def by_modules(network: Network, params: SamplingParams, rows: list[int], merge: bool = True):
    noise = uniforms(0, 1, np.array(rows), params.max_new_tokens)
    with network.merged(merge):
        return sample(network, [PROMPTS[row] for row in rows], noise, params)


def ends(network: Network) -> tuple[int, ...]:
    """Tokens that end some rows early, so that they leave the batch, others later or never."""
    free = by_modules(network, SamplingParams(14, (), 0.8), list(range(6))).token_ids
    return free[0][2], free[3][5], free[5][8]


def assert_same(ours, theirs) -> None:
    assert ours.token_ids == theirs.token_ids
    assert ours.truncated == theirs.truncated
    for name in ("token_logprobs", "token_entropies"):
        for row, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            np.testing.assert_allclose(row, other, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize("targets", ADAPTED.values(), ids=ADAPTED)
@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_it_samples_what_the_modules_sample(family, targets, merge):
    network = policy(family, targets)
    weights = {name: weight.clone() for name, weight in network.model.named_parameters()}
    sampler = Sampler(network, seed=0, merge=merge)
    assert sampler.is_plain
    rows = list(range(6))
    params = SamplingParams(14, ends(network), 0.8)
    theirs = by_modules(network, params, rows, merge)
    assert_same(sampler(batch(rows), params, 1), theirs)
    assert len({*map(len, theirs.token_ids)}) > 1
    for name, weight in network.model.named_parameters():
        assert torch.equal(weight, weights[name])
    some = sampler(batch([4, 1]), params, 1)
    assert some.token_ids == [theirs.token_ids[4], theirs.token_ids[1]]


def test_it_follows_the_weights_through_an_update():
    network = policy("llama", "all-linear")
    sampler, params = Sampler(network, seed=0), SamplingParams(10, ())
    before = sampler(batch([0, 3]), params, 1)
    with torch.no_grad():
        for weight in network.trainable:
            weight.add_(0.05 * torch.randn_like(weight))
    after = sampler(batch([0, 3]), params, 1)
    assert after.token_logprobs != before.token_logprobs
    assert_same(after, by_modules(network, params, [0, 3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_it_serves_other_types(dtype):
    assert is_plain(policy("qwen3", "all-linear", dtype), merge=True)


@pytest.mark.parametrize("family", sorted({*FAMILIES, "gemma", "phi3", "stablelm"} - {*LLAMA_LIKE}))
def test_other_families_decode_by_their_modules(family):
    model = tiny_family(family)
    assert family in FAMILIES | SLOW
    assert not is_plain(Network(model, model.get_output_embeddings()), merge=True)


def scaled_output(model):
    model.model.layers[1].mlp.register_forward_hook(lambda module, given, made: 1.001 * made)


def another_norm(model):
    model.model.norm = torch.nn.RMSNorm(32, dtype=torch.float32)


def trained_norm(model):
    model.model.layers[0].input_layernorm.forward = lambda states: states


@pytest.mark.parametrize("change", [scaled_output, another_norm, trained_norm])
def test_a_model_that_computes_otherwise_decodes_by_its_modules(change):
    model = tiny_family("llama").float()
    assert is_plain(Network(model, model.lm_head), merge=True)
    change(model)
    network = Network(model, model.lm_head).eval()
    sampler, params = Sampler(network, seed=0), SamplingParams(6, ())
    assert not sampler.is_plain
    assert sampler(batch([0, 3]), params, 1) == by_modules(network, params, [0, 3])


class Operations(TorchDispatchMode):
    """Counts what is dispatched to the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **kwargs or {})


def operations(network: Network, decode) -> int:
    """Of a step of one token."""
    counts = []

    def counted(step):
        with Operations() as dispatched:
            logits = decode(step)
        counts.append(dispatched.count)
        return logits

    noise = uniforms(0, 1, np.arange(3), 8)
    sample(network, PROMPTS[:3], noise, SamplingParams(8, ()), decode=counted)
    return counts[-1]


def test_a_step_takes_two_thirds_of_the_operations_at_most():
    network = policy("llama", "all-linear")
    with network.merged() as merged:
        plain = operations(network, PlainDecoder(network, merged))
        assert plain <= operations(network, partial(network, want="next_logits")) * 2 / 3
