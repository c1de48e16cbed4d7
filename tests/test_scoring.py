"""spo.scoring: the causal shift, chunked log-probs and their gradients, layout and memory."""

import types

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spo.config import SPOConfig
from spo.networks.batching import MicroBatch, Sequences
from spo.networks.logprobs import (
    logprobs_and_entropies,
    token_logprobs,
    token_logprobs_and_entropies,
)
from spo.networks.network import (
    Network,
    Numerics,
    decoder,
    hidden_states,
    states_before_tokens,
    token_values,
)
from spo.scoring import score_rows

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
COMPLETIONS = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 29]]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # matrices this small only wait for a second one


@pytest.fixture(scope="module")
def policy():
    model = tiny.tiny_llama().double()
    return Network(model, model.get_output_embeddings())


@pytest.fixture(scope="module")
def critic():
    model = tiny.tiny_reward_model(seed=1).double()
    return Network(model, model.score)


def score(network, what, prompts=PROMPTS, completions=COMPLETIONS, **settings):
    args = SPOConfig(**settings)
    network = Network(
        network.model,
        network.head,
        numerics=Numerics(args.mixed_precision, args.temperature, args.logits_chunk_size),
    )
    return score_rows(network, what, Sequences(prompts, completions, args.share_prompts), args)


# --- layout and the causal shift ------------------------------------------------------------------


def test_layout_of_ragged_rows():
    batch = MicroBatch.build(np.array([2, 0]), PROMPTS, COMPLETIONS, CPU)
    assert batch.input_ids.tolist() == [[9, 10, 11, 12, 13, 26], [5, 6, 7, 20, 21, 0]]
    assert batch.row_of_token.tolist() == [0, 1, 1]
    assert batch.position_of_token.tolist() == [0, 0, 1]
    assert batch.state_position.tolist() == [4, 2, 3]
    assert batch.targets.tolist() == [26, 20, 21]
    rows = batch.to_rows(torch.tensor([1.0, 2.0, 3.0]))
    assert rows.tolist() == [[1.0, 0.0], [2.0, 3.0]]


class PositionAndId(torch.nn.Module):
    """A decoder whose state at position s is (s, the id read there)."""

    def forward(self, input_ids, use_cache):
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return types.SimpleNamespace(
            last_hidden_state=torch.stack([positions, input_ids], -1).float()
        )


def test_the_state_of_a_token_is_the_one_before_it_is_read():
    batch = MicroBatch.build(np.arange(4), PROMPTS, COMPLETIONS, CPU)
    states = hidden_states(PositionAndId(), batch)
    expected = [
        [len(prompt) + t - 1, ([*prompt, *completion])[len(prompt) + t - 1]]
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
        for t in range(len(completion))
    ]
    assert states.tolist() == expected
    assert expected[0] == [2, 7]  # token 0 is judged from the prompt's last token
    everything = PositionAndId()(batch.input_ids, use_cache=False).last_hidden_state
    assert torch.equal(states, states_before_tokens(everything, batch))


def test_token_t_decides_nothing_about_its_own_value_and_everything_after(critic):
    changed = [*COMPLETIONS[1][:2], 99, *COMPLETIONS[1][3:]]
    (before,) = score(critic, "values", [PROMPTS[1]], [COMPLETIONS[1]])
    (after,) = score(critic, "values", [PROMPTS[1]], [changed])
    np.testing.assert_array_equal(before[0][:3], after[0][:3])
    assert before[0][3] != after[0][3]


def test_to_rows_gives_each_token_its_own_gradient():
    batch = MicroBatch.build(np.arange(4), PROMPTS, COMPLETIONS, CPU)
    flat = torch.arange(1.0, 11.0, requires_grad=True)
    batch.to_rows(flat).square().sum().backward()
    assert flat.grad.tolist() == [2 * x for x in range(1, 11)]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    max_rows=st.integers(1, 5),
    max_tokens=st.none() | st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_micro_batches_hold_every_row_once_within_the_limits(lengths, max_rows, max_tokens, seed):
    rows = np.random.default_rng(seed).permutation(len(lengths))[: max(1, len(lengths) - 2)]
    lengths = np.array(lengths)
    sequences = Sequences([[0]] * len(lengths), [[0] * (n - 1) for n in lengths])
    parts = sequences.split(rows, max_rows, max_tokens)
    assert sorted(np.concatenate(parts).tolist()) == sorted(rows.tolist())
    in_order = lengths[np.concatenate(parts)]
    assert (np.diff(in_order) <= 0).all()  # longest first
    for part in parts:
        if max_tokens is None:
            assert len(part) <= max_rows
        else:
            assert len(part) * lengths[part].max() <= max_tokens or len(part) == 1


def test_no_rows_make_no_micro_batches():
    assert Sequences([[1]] * 2, [[2]] * 2, share_prompts=True).split(np.arange(0), 2) == []


# --- shared prompts -------------------------------------------------------------------------------

SHARED = [PROMPTS[0]] * 3 + [PROMPTS[2]] * 2


def test_prompts_stay_together_where_that_is_less_to_compute():
    rows = np.arange(4)
    long_prompts = Sequences([[1] * 50, [2] * 50] * 2, [[0] * 9, [0] * 8, [0] * 1, [0] * 2], True)
    assert [part.tolist() for part in long_prompts.split(rows, 2)] == [[0, 2], [1, 3]]
    ragged = Sequences([[1] * 5, [2] * 5] * 2, [[0] * 90, [0] * 80, [0] * 1, [0] * 2], True)
    assert [part.tolist() for part in ragged.split(rows, 2)] == [[0, 1], [3, 2]]


def test_a_prompt_alone_in_its_micro_batch_is_not_split_off():
    (batch,) = Sequences([PROMPTS[2]], [[1, 2]], True).micro_batches(np.arange(1), 8, None, CPU)
    assert batch.prefixes is None
    (batch,) = Sequences([[7]] * 3, [[1, 2]] * 3, True).micro_batches(np.arange(3), 8, None, CPU)
    assert batch.prefixes is None


@pytest.mark.parametrize("rows", [[0, 1, 2], [4, 1, 0, 3]], ids=["one prompt", "two, ragged"])
def test_shared_prompts_change_neither_states_nor_gradients(rows, policy):
    """Float64; completions of different lengths behind prompts of different lengths."""
    completions = [*COMPLETIONS, [30, 31, 32]]

    def states_and_gradient(share_prompts):
        batch = MicroBatch.build(np.array(rows), SHARED, completions, CPU, share_prompts)
        assert (batch.prefixes is not None) == share_prompts
        policy.model.zero_grad()
        with policy.active():
            states = hidden_states(decoder(policy.model), batch)
        token_logprobs(states, policy.head, batch.targets, 1.0, 4).square().sum().backward()
        gradient = [parameter.grad.clone() for parameter in policy.model.parameters()]
        return batch.to_rows(states.detach().sum(-1)), gradient

    (states, gradient), (shared_states, shared_gradient) = map(states_and_gradient, (False, True))
    torch.testing.assert_close(shared_states, states, rtol=0, atol=1e-6)
    for ours, theirs in zip(shared_gradient, gradient, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    policy.model.zero_grad()


def test_shared_prompts_change_no_scores(policy):
    completions = [*COMPLETIONS, [30, 31, 32]]
    what = "logprobs_and_entropies"
    shared = score(policy, what, SHARED, completions)
    whole = score(policy, what, SHARED, completions, gradient_checkpointing=True)
    for ours, theirs in zip(shared, whole, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


# --- chunked log-probs ----------------------------------------------------------------------------


def naive(states, weight, bias, targets, temperature):
    logits = states @ weight.T + (0 if bias is None else bias)
    return (logits / temperature).log_softmax(-1)[torch.arange(len(targets)), targets]


def linear_problem(bias=True, num_tokens=11, width=5, vocab=7):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    head = torch.nn.Linear(width, vocab, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(normal(vocab, width))
        if bias:
            head.bias.copy_(normal(vocab))
    targets = torch.randint(0, vocab, (num_tokens,), generator=generator)
    return normal(num_tokens, width).requires_grad_(), head, targets, normal(num_tokens)


@pytest.mark.parametrize("trainable", ["states", "states+head", "head"])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("chunk_size", [1, 4, 11, 256])
@pytest.mark.parametrize("bias", [True, False])
def test_chunked_logprobs_and_gradients_equal_log_softmax(bias, chunk_size, temperature, trainable):
    states, head, targets, factor = linear_problem(bias)
    states.requires_grad_("states" in trainable)
    head.requires_grad_("head" in trainable)
    wanted = [x for x in (states, head.weight, head.bias) if x is not None and x.requires_grad]
    actual = token_logprobs(states, head, targets, temperature, chunk_size)
    expected = naive(states, head.weight, head.bias, targets, temperature)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    gradients = zip(
        torch.autograd.grad((actual * factor).sum(), wanted),
        torch.autograd.grad((expected * factor).sum(), wanted),
        strict=True,
    )
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [1, 4, 256])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_entropies_are_of_the_full_softmax_at_the_temperature(temperature, chunk_size):
    states, head, targets, _ = linear_problem()
    logprobs, entropies = token_logprobs_and_entropies(
        states, head, targets, temperature, chunk_size
    )
    probs = ((states @ head.weight.T + head.bias) / temperature).softmax(-1)
    expected = [-sum(p * np.log(p) for p in row) for row in probs.tolist()]
    np.testing.assert_allclose(entropies.tolist(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        logprobs, naive(states, head.weight, head.bias, targets, temperature).detach()
    )
    assert not logprobs.requires_grad


def test_tokens_that_cannot_be_sampled_leave_the_entropy_finite():
    logits = torch.tensor([[0.0, 0.0, -float("inf")]])
    logprob, entropy = logprobs_and_entropies(logits, torch.tensor([0]))
    assert entropy.item() == pytest.approx(np.log(2))
    assert logprob.item() == pytest.approx(-np.log(2))


def test_half_precision_products_are_summed_in_float32():
    states, head, targets, _ = linear_problem(vocab=300)
    half = token_logprobs(states.bfloat16(), head.bfloat16(), targets)
    assert half.dtype == torch.float32
    exact = (states.bfloat16().double(), head.weight.double(), head.bias.double(), targets, 1.0)
    assert (half - naive(*exact)).abs().max() < 0.1  # logits of about ±8 in steps of 2^-5


def test_autocast_decides_the_type_of_the_product():
    states, head, targets, _ = linear_problem()
    head = head.float()
    states = states.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = token_logprobs(states, head, targets)
    rounded = token_logprobs(states.bfloat16(), head.bfloat16(), targets)
    assert torch.equal(inside, rounded)
    inside.sum().backward()
    assert states.grad.dtype == torch.float32


def test_values_are_float32_even_under_autocast():
    states = torch.full((2, 3), 1.001)
    head = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.ones_(head.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = token_values(head, states)
    torch.testing.assert_close(values, torch.full((2,), 3.003), rtol=0, atol=1e-6)


class LargestLogits(TorchDispatchMode):
    """The most elements of any tensor whose last axis is the vocabulary, the head's Wᵀ aside."""

    def __init__(self, head):
        super().__init__()
        self.vocab, self.width, self.largest = *head.weight.shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if not isinstance(x, torch.Tensor) or not x.ndim or x.shape[-1] != self.vocab:
                continue
            if x.shape != (self.width, self.vocab):
                self.largest = max(self.largest, x.numel())
        return result


@pytest.mark.parametrize("head_trains", [True, False])
def test_logits_exist_for_one_chunk_at_a_time_forward_and_backward(policy, head_trains):
    vocab, chunk = tiny.VOCAB_SIZE, 3
    prompts, completions = [[1, 2]] * 4, [[3] * 10] * 4
    batch = MicroBatch.build(np.arange(4), prompts, completions, CPU)
    policy.head.requires_grad_(head_trains)
    with LargestLogits(policy.head) as recorder, policy.active():
        states = hidden_states(decoder(policy.model), batch)
        token_logprobs(states, policy.head, batch.targets, 1.0, chunk).sum().backward()
    policy.head.requires_grad_(True)
    assert recorder.largest == chunk * vocab
    with LargestLogits(policy.head) as recorder:
        score(
            policy,
            "logprobs_and_entropies",
            prompts,
            completions,
            logits_chunk_size=chunk,
        )
    assert recorder.largest == chunk * vocab
    with LargestLogits(policy.head) as recorder:  # the recorder does see them
        naive(states.detach(), policy.head.weight, None, batch.targets, 1.0)
    assert recorder.largest == 40 * vocab
    policy.model.zero_grad()


# --- score_rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_equal_one_plain_forward_pass_per_row(policy, critic, temperature):
    logprobs, entropies = score(policy, "logprobs_and_entropies", temperature=temperature)
    (values,) = score(critic, "values")
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        ids = torch.tensor([[*prompt, *completion]])
        before = slice(len(prompt) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            log_probs = (policy.model(ids).logits[0, before] / temperature).log_softmax(-1)
            states = critic.model.model(ids).last_hidden_state[0, before]
        expected = log_probs[torch.arange(len(completion)), completion]
        np.testing.assert_allclose(logprobs[i], expected, rtol=0, atol=1e-5)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        np.testing.assert_allclose(entropies[i], entropy, rtol=0, atol=1e-5)
        expected = critic.head(states).squeeze(-1).detach()
        np.testing.assert_allclose(values[i], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 1},
        {"per_device_train_batch_size": 3},
        {"max_tokens_per_micro_batch": 12},
        {"logits_chunk_size": 1},
    ],
)
def test_scores_do_not_depend_on_the_micro_batch(policy, settings):
    what = "logprobs_and_entropies"
    for ours, theirs in zip(score(policy, what, **settings), score(policy, what), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_empty_completions_score_to_nothing(policy):
    logprobs, _ = score(policy, "logprobs_and_entropies", PROMPTS[:3], [[], [3, 4], []])
    assert [len(x) for x in logprobs] == [0, 2, 0]
    alone, _ = score(policy, "logprobs_and_entropies", PROMPTS[1:2], [[3, 4]])
    np.testing.assert_allclose(logprobs[1], alone[0], atol=1e-6)
