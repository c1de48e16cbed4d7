"""spo.losses: values and gradients against naive twins, clipping by hand, invariances."""

import math

import jaxtyping
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spo.kl import kl_k1, kl_k3
from spo.losses import (
    aggregate_log_ratio,
    policy_loss,
    positive_nll,
    token_weights,
    value_loss,
)

LENGTHS = [4, 1, 0, 6, 3]
LOSS_TYPES = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"]
LEVELS = ["token", "segment", "sequence"]


def batch(seed=0, loss_type="grpo", spread=0.3):
    """Random float64 inputs of both losses; ratios fall on both sides of the usual clip range."""
    ragged = reference.ragged(seed, LENGTHS)
    random = np.random.default_rng(seed + 100)
    shape = ragged["mask"].shape
    weights = token_weights(ragged["mask"], loss_type, max_completion_length=8)

    def normal(scale=1.0, shift=0.0):
        return torch.from_numpy(random.normal(shift, scale, shape))

    old = normal(shift=-1.5)
    return {
        "token_logprobs": (old + normal(spread)).requires_grad_(),
        "token_logprobs_old": old,
        "token_logprobs_ref": old + normal(spread),
        "token_advantages": normal(),
        "weights": torch.from_numpy(weights),
        "segment_ids": torch.from_numpy(ragged["ids"]),
    }


def value_batch(seed=0):
    inputs = batch(seed)
    names = ("token_logprobs", "token_logprobs_old", "token_advantages")
    values, old, returns = (inputs[name].detach() for name in names)
    return {
        "token_values": values.clone().requires_grad_(),
        "token_returns": returns,
        "token_values_old": old,
        "weights": inputs["weights"],
    }


def gradient(loss, tensor):
    return torch.autograd.grad(loss, tensor)[0]


# --- policy loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.2},
        {"epsilon": 0.1, "epsilon_high": 0.28},
        {"epsilon": 0.2, "epsilon_high": 0.0},
        {"epsilon": 0.1, "delta": 1.2},
        {"epsilon": 0.2, "beta": 0.7},
        {"epsilon": 0.2, "beta": 0.7, "use_bias_correction_kl": True},
        {"epsilon": 0.2, "loss_type": "cispo", "epsilon_high": 1.1},
        {"epsilon": 0.2, "loss_type": "sapo"},
        {"epsilon": 0.2, "loss_type": "sapo", "beta": 0.7, "sapo_temperatures": (2.0, 3.0)},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_policy_loss_and_its_gradient_equal_the_twin(seed, options, level):
    inputs = batch(seed)
    result = policy_loss(**inputs, **options, importance_sampling_level=level)
    high = options.get("epsilon_high", options["epsilon"])
    expected = reference.policy_loss(
        inputs["token_logprobs"],
        inputs["token_logprobs_old"],
        inputs["token_advantages"],
        inputs["weights"],
        inputs["segment_ids"].numpy(),
        options["epsilon"],
        high,
        options.get("delta"),
        level,
        inputs["token_logprobs_ref"],
        options.get("beta", 0.0),
        options.get("loss_type", "dapo"),
        options.get("sapo_temperatures", (1.0, 1.05)),
        options.get("use_bias_correction_kl", False),
    )
    torch.testing.assert_close(result[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        gradient(result[0], inputs["token_logprobs"]),
        gradient(expected, inputs["token_logprobs"]),
        rtol=0,
        atol=1e-12,
    )


# ratio, advantage, loss, d loss / d log π (0 where clipped), counted as clipped
CLIPPING = [
    (1.1, 1.0, -1.1, -1.1, False),
    (1.5, 1.0, -1.3, 0.0, True),
    (1.5, -1.0, 1.5, 1.5, False),
    (0.5, 1.0, -0.5, -0.5, False),
    (0.5, -1.0, 0.8, 0.0, True),
    (0.9, -1.0, 0.9, 0.9, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope", "clipped"), CLIPPING)
def test_clipping_by_hand(ratio, advantage, loss, slope, clipped):
    """ε = 0.2, ε_high = 0.3."""
    check_one_token(ratio, advantage, loss, slope, clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [(3.0, -1.0, 2.0, 0.0), (1.9, -1.0, 1.9, 1.9), (3.0, 1.0, -1.3, 0.0), (0.5, 1.0, -0.5, -0.5)],
)
def test_delta_bounds_the_ratio_where_the_minimum_does_not(ratio, advantage, loss, slope):
    check_one_token(ratio, advantage, loss, slope, advantage > 0 and ratio > 1.3, delta=2.0)


def check_one_token(ratio, advantage, loss, slope, clipped, **options):
    one = torch.ones(1, 1, dtype=torch.float64)
    logprobs = (one * float(np.log(ratio)) - 2).requires_grad_()
    options = {"epsilon": 0.2, "epsilon_high": 0.3} | options
    ids = torch.zeros(1, 1, dtype=torch.long)
    result = policy_loss(logprobs, -2 * one, advantage * one, one, ids, **options)
    assert result[0].item() == pytest.approx(loss, abs=1e-12)
    assert gradient(result[0], logprobs).item() == pytest.approx(slope, abs=1e-12)
    assert result[1]["clipped"].item() == clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.0, 2.0, 4.0, -2.0, False),  # −1 · 2 · log π, log π = −2
        (9.0, 2.0, 5.0 * 2.0 * (2 - math.log(9)), -10.0, True),
        (9.0, -2.0, -5.0 * 2.0 * (2 - math.log(9)), 10.0, False),
        (0.1, 2.0, 0.1 * 2.0 * (2 - math.log(0.1)), -0.2, False),
    ],
)
def test_cispo_by_hand(ratio, advantage, loss, slope, clipped):
    """The bounded ratio is a number: a clipped token goes on teaching."""
    options = {"epsilon_high": 5.0, "loss_type": "cispo"}
    check_one_token(ratio, advantage, loss, slope, clipped, **options)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_sapo_by_hand(advantage):
    """4/τ σ(0) at ratio 1, with the policy gradient's slope; a ratio of 9 hardly teaches."""
    tau = 1.0 if advantage > 0 else 1.05
    check_one_token(1.0, advantage, -2 / tau * advantage, -advantage, False, loss_type="sapo")
    gate = 1 / (1 + math.exp(-tau * 8))
    loss, slope = -4 / tau * gate * advantage, -4 * gate * (1 - gate) * 9 * advantage
    check_one_token(9.0, advantage, loss, slope, False, loss_type="sapo")
    assert abs(slope) < 0.05


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "sapo"])
@pytest.mark.parametrize("level", LEVELS)
def test_at_ratio_1_the_gradient_is_the_policy_gradient(level, loss_type):
    """Three states, three actions, softmax table θ: ∇_θ(s) log π(a|s) = onehot(a) − π(·|s)."""
    random = np.random.default_rng(0)
    table = torch.from_numpy(random.normal(size=(3, 3))).requires_grad_()
    states, actions = random.integers(0, 3, (5, 4)), random.integers(0, 3, (5, 4))
    mask = reference.mask_of([4, 2, 3, 1, 4])
    ids = reference.segment_ids(random.random(mask.shape) < 0.4, mask)
    # one advantage per ratio: at the coarser levels a ratio stands for its whole segment or row
    groups = {"token": np.arange(20).reshape(5, 4), "segment": ids, "sequence": np.zeros_like(ids)}
    advantages = random.normal(size=(5, 20))[np.arange(5)[:, None], groups[level]]
    weights = token_weights(mask, "dr_grpo", 4)

    logprobs = table.log_softmax(-1)[states, actions]
    result = policy_loss(
        logprobs,
        logprobs.detach(),
        torch.from_numpy(advantages),
        torch.from_numpy(weights),
        torch.from_numpy(ids),
        epsilon=0.2,
        epsilon_high=5.0,
        importance_sampling_level=level,
        loss_type=loss_type,
    )
    expected = np.zeros((3, 3))
    probs = table.detach().softmax(-1).numpy()
    for b, t in zip(*np.nonzero(mask), strict=True):
        score = np.eye(3)[actions[b, t]] - probs[states[b, t]]
        expected[states[b, t]] -= weights[b, t] * advantages[b, t] * score
    np.testing.assert_allclose(gradient(result[0], table).numpy(), expected, rtol=0, atol=1e-12)
    if loss_type == "dapo":
        assert result[0].item() == pytest.approx(-(weights * advantages).sum())
    assert not result[1]["clipped"]


REWARDS = torch.tensor([1.0, 0.0, float("nan"), -0.5, 0.25]).double()
"""Of the batch's five rows; the third is empty."""


def test_likelihood_of_the_rewarded_is_a_policy_gradient_without_baseline():
    """At ratio 1 its gradient is that of advantages max(R, 0)."""
    inputs = batch(5, spread=0.0)
    logprobs = inputs["token_logprobs"]
    rewards = REWARDS.nan_to_num().clamp(min=0)
    inputs["token_advantages"] = rewards[:, None].expand_as(logprobs)
    expected = gradient(policy_loss(**inputs, epsilon=0.2)[0], logprobs)
    nll = positive_nll(logprobs, REWARDS, inputs["weights"])
    torch.testing.assert_close(gradient(nll, logprobs), expected, rtol=0, atol=1e-12)
    assert nll.item() > 0


def test_likelihood_of_the_rewarded_leaves_out_tokens_of_weight_0():
    inputs = batch(6)
    weights, rewards = inputs["weights"].clone(), REWARDS.clone()
    weights[0], rewards[0] = 0, float("nan")  # an unscorable completion
    clean, dirty = inputs["token_logprobs"], inputs["token_logprobs"].detach().clone()
    dirty[weights == 0] = float("nan")
    dirty.requires_grad_()
    expected = positive_nll(clean, REWARDS.nan_to_num(), weights)
    actual = positive_nll(dirty, rewards, weights)
    assert actual.item() == expected.item()
    assert torch.equal(gradient(actual, dirty), gradient(expected, clean))


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "sapo"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_whatever_stands_at_tokens_of_weight_0_reaches_neither_loss_nor_gradient(
    garbage, level, loss_type
):
    options = {"epsilon": 0.2, "beta": 0.5, "delta": 1.5, "importance_sampling_level": level}
    options |= {"loss_type": loss_type}
    clean = batch(1)
    clean["weights"][3, 2:4] = 0  # inside a row as well as on the padding
    mask = clean["weights"] > 0
    dirty = {
        name: torch.where(mask, x.detach(), garbage) if x.is_floating_point() else x
        for name, x in clean.items()
    }
    dirty["weights"] = clean["weights"]
    dirty["token_logprobs"].requires_grad_()
    expected, actual = policy_loss(**clean, **options), policy_loss(**dirty, **options)
    assert actual[0].item() == expected[0].item()
    grad = gradient(actual[0], dirty["token_logprobs"])
    assert torch.equal(grad, gradient(expected[0], clean["token_logprobs"]))
    assert not grad[~mask].any()
    assert actual[1] == expected[1]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_of_any_size_and_width_sum_to_the_whole(loss_type, level):
    inputs = batch(2, loss_type)
    options = {"epsilon": 0.2, "beta": 0.3, "importance_sampling_level": level}
    options |= {"loss_type": loss_type}
    whole = policy_loss(**inputs, **options)
    grad = gradient(whole[0], inputs["token_logprobs"])
    for split in ([[0, 1, 2, 3, 4]], [[4, 2], [0], [3, 1]], [[0], [1], [2], [3], [4]]):
        parts, total = torch.zeros_like(grad), 0.0
        for rows in split:
            width = max(max(LENGTHS[row] for row in rows), 1)  # padded to this micro-batch only
            part = {name: x[rows, :width] for name, x in inputs.items()}
            loss = policy_loss(**part, **options)[0]
            total += loss.item()
            parts += gradient(loss, inputs["token_logprobs"])
        assert total == pytest.approx(whole[0].item(), abs=1e-12)
        torch.testing.assert_close(parts, grad, rtol=0, atol=1e-12)


def test_segment_ratio_is_the_geometric_mean_over_the_segment():
    ratios = torch.tensor([[2.0, 0.5, 4.0, 1.0, 9.0]]).double()
    ids = torch.tensor([[0, 0, 1, 1, -1]])
    actual = aggregate_log_ratio(ratios.log(), ids >= 0, ids, "segment").exp()
    torch.testing.assert_close(actual, torch.tensor([[1.0, 1.0, 2.0, 2.0, 1.0]]).double())
    actual = aggregate_log_ratio(ratios.log(), ids >= 0, ids, "sequence").exp()
    mean = 4.0 ** (1 / 4)
    torch.testing.assert_close(actual, torch.tensor([[mean] * 4 + [1.0]]).double())


def test_segments_of_one_token_make_the_levels_equal_token_level():
    inputs = batch(0)
    mask = inputs["weights"] > 0
    inputs["segment_ids"] = torch.where(mask, torch.arange(mask.shape[1]), -1)
    token, segment = (
        policy_loss(**inputs, epsilon=0.2, importance_sampling_level=level)[0]
        for level in ("token", "segment")
    )
    assert token.item() == pytest.approx(segment.item(), abs=1e-14)


# --- KL -------------------------------------------------------------------------------------------


def categorical():
    random = np.random.default_rng(3)
    p, q = (torch.from_numpy(random.dirichlet(np.ones(6))) for _ in range(2))
    pairs = list(zip(p.tolist(), q.tolist(), strict=True))
    forward = sum(a * math.log(a / b) for a, b in pairs)
    backward = sum(b * math.log(b / a) for a, b in pairs)
    return p, q, forward, backward


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_kl_estimators_agree_with_the_enumerated_kl(estimator):
    p, q, forward, backward = categorical()
    assert abs(forward - backward) > 0.05  # else swapped arguments would pass
    assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(forward, abs=1e-12)


def test_the_estimators_are_not_each_other():
    p, q, _, _ = categorical()
    assert (kl_k3(p.log(), q.log()) >= 0).all()
    assert (kl_k1(p.log(), q.log()) < 0).any()
    assert not kl_k3(p.log(), p.log()).any()


def test_the_penalty_is_the_kl_of_the_policy_to_the_reference():
    """One token per symbol, weighted by π: with A = 0 the loss is β KL(π‖π_ref)."""
    p, q, forward, _ = categorical()
    logprobs, ref = p.log()[:, None], q.log()[:, None]
    zeros = torch.zeros_like(ref)
    result = policy_loss(
        logprobs,
        logprobs,
        zeros,
        p[:, None],
        zeros.long(),
        epsilon=0.2,
        token_logprobs_ref=ref,
        beta=0.5,
    )
    assert result[0].item() == pytest.approx(0.5 * forward, abs=1e-12)


def test_with_its_ratio_the_gradient_of_the_penalty_is_that_of_the_kl():
    """Tokens drawn from π_old, here enumerated: E_old[∇ρ k3] = ∇ KL(π‖π_ref), at ratio 1 too."""
    p, q, _, _ = categorical()
    table = p.log().clone().requires_grad_()
    logprobs = table.log_softmax(-1)
    zeros = torch.zeros(6, 1).double()
    given = (logprobs[:, None], logprobs.detach()[:, None], zeros, p[:, None], zeros.long())
    penalty = {"epsilon": 0.2, "token_logprobs_ref": q.log()[:, None], "beta": 1.0}
    loss = policy_loss(*given, **penalty, use_bias_correction_kl=True)[0]
    exact = (logprobs.exp() * (logprobs - q.log())).sum()
    torch.testing.assert_close(
        torch.autograd.grad(loss, table, retain_graph=True)[0],
        torch.autograd.grad(exact, table, retain_graph=True)[0],
    )
    loss = policy_loss(*given, **penalty)[0]
    plain = torch.autograd.grad(loss, table, retain_graph=True)[0]
    assert not torch.allclose(plain, torch.autograd.grad(exact, table)[0], atol=1e-2)


def test_beta_0_leaves_kl_out_of_the_loss():
    inputs = batch(0)
    with_ref = policy_loss(**inputs, epsilon=0.2)
    penalised = policy_loss(**inputs, epsilon=0.2, beta=0.5)
    inputs["token_logprobs_ref"] = None
    without = policy_loss(**inputs, epsilon=0.2)
    assert with_ref[0].item() == without[0].item() < penalised[0].item()


def test_the_sums_are_the_loss_its_tokens_and_the_kl_to_the_old_policy():
    inputs = batch(0)
    loss, sums = policy_loss(**inputs, epsilon=0.2)
    mask = inputs["weights"] > 0
    k3 = kl_k3(inputs["token_logprobs_old"], inputs["token_logprobs"].detach())
    assert sums["policy_loss"] == loss
    assert sums["policy_tokens"] == mask.sum()
    assert sums["approx_kl"] == pytest.approx(k3[mask].sum().item())
    assert not any(value.requires_grad for value in sums.values())


def test_an_unknown_loss_type_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a person runs it
    with pytest.raises(ValueError, match="loss_type='sum' is not one of"):
        token_weights(np.ones((1, 1), bool), "sum", 4)


# --- weights --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    loss_type=st.sampled_from(LOSS_TYPES),
)
def test_weights_equal_their_twin(lengths, loss_type):
    mask = reference.mask_of(lengths, 7)
    np.testing.assert_allclose(
        token_weights(mask, loss_type, 9), reference.weights(mask, loss_type, 9), rtol=1e-12
    )


def test_weights_by_hand():
    """Lengths 3, 1, 0: N = 4 tokens in R = 2 completions."""
    mask = reference.mask_of([3, 1, 0])
    sixth, half, tenth = 1 / 6, 1 / 2, 1 / 20
    expected = {
        "dapo": [[0.25] * 3, [0.25, 0, 0]],
        "bnpo": [[0.25] * 3, [0.25, 0, 0]],
        "grpo": [[sixth] * 3, [half, 0, 0]],
        "dr_grpo": [[tenth] * 3, [tenth, 0, 0]],
    }
    expected |= {"cispo": expected["dapo"], "sapo": expected["grpo"]}
    for loss_type, rows in expected.items():
        np.testing.assert_allclose(token_weights(mask, loss_type, 10), [*rows, [0, 0, 0]])
        by_rows = loss_type in ("grpo", "sapo", "dr_grpo")  # as if the third were masked
        counted = token_weights(mask, loss_type, 10, num_rows=3)
        np.testing.assert_allclose(
            counted, np.array([*rows, [0, 0, 0]]) * (2 / 3 if by_rows else 1)
        )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_nothing_in_the_loss_is_weight_0_everywhere(loss_type):
    assert not token_weights(np.zeros((2, 3), bool), loss_type, 3).any()
    assert token_weights(np.zeros((2, 0), bool), loss_type, 3).shape == (2, 0)


# --- value loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cliprange", [None, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_value_loss_and_its_gradient_equal_the_twin(seed, cliprange):
    inputs = value_batch(seed)
    actual, sums = value_loss(**inputs, cliprange=cliprange)
    assert sums["value_loss"] == actual
    names = ("token_values", "token_returns", "token_values_old", "weights")
    expected = reference.value_loss(*(inputs[name] for name in names), cliprange)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        gradient(actual, inputs["token_values"]),
        gradient(expected, inputs["token_values"]),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        (2.0, 3.0, 0.5 * 2.5**2, 0.0),  # moved by 2 towards the target, 0.5 allowed
        (2.0, -1.0, 0.5 * 3.0**2, 3.0),  # moved away: the unclipped error is the larger
        (0.3, 1.0, 0.5 * 0.7**2, -0.7),  # inside the range
    ],
)
def test_clipped_value_loss_by_hand(value, target, loss, slope):
    """V_old = 0, cliprange 0.5."""
    values = torch.full((1, 1), value, dtype=torch.float64, requires_grad=True)
    one = torch.ones_like(values).detach()
    actual, _ = value_loss(values, target * one, 0 * one, one, cliprange=0.5)
    assert actual.item() == pytest.approx(loss)
    assert gradient(actual, values).item() == pytest.approx(slope)


@pytest.mark.parametrize("cliprange", [None, 0.2])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_garbage_at_weight_0_reaches_neither_value_loss_nor_gradient(garbage, cliprange):
    clean = value_batch(1)
    mask = clean["weights"] > 0
    dirty = {name: torch.where(mask, x.detach(), garbage) for name, x in clean.items()}
    dirty["weights"] = clean["weights"]
    dirty["token_values"].requires_grad_()
    expected, actual = (value_loss(**x, cliprange=cliprange)[0] for x in (clean, dirty))
    assert actual.item() == expected.item()
    grad = gradient(actual, dirty["token_values"])
    assert torch.equal(grad, gradient(expected, clean["token_values"]))
