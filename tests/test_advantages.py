"""spo.advantages: segment GAE and its identities, GRPO's advantages, the credit they make up."""

import dataclasses

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from spo.advantages import (
    MIN_STD,
    assign_credit,
    group_advantages,
    monte_carlo_returns,
    normalize,
    objective_advantages,
    segment_gae,
)
from spo.config import SPOConfig
from spo.rollouts import Rollouts, select_rows
from spo.segments import segment_ids_from_boundaries

LENGTHS = [5, 1, 0, 7, 3, 4]
lengths_of_rows = st.lists(st.integers(0, 7), min_size=1, max_size=5)
unit = st.floats(0.0, 1.0)

pytestmark = pytest.mark.filterwarnings(
    "ignore:entropy_percentile", "ignore:gamma", "error::RuntimeWarning"
)


def equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6, strict=False)


def config(**settings):
    return SPOConfig(**{"num_generations": 2, "normalize_advantages": False} | settings)


def row_rewards(batch):
    """Σ_t r_t of each row, spread over its tokens."""
    return np.where(batch["mask"], (batch["rewards"] * batch["mask"]).sum(1, keepdims=True), 0)


# --- segment GAE ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=lengths_of_rows,
    gamma=unit,
    lam=unit,
    segment_value=st.sampled_from(["start", "mean", "last"]),
)
def test_segment_advantages_equal_their_twin(seed, lengths, gamma, lam, segment_value):
    batch = reference.ragged(seed, lengths)
    arguments = batch["rewards"], batch["values"], batch["ids"], gamma, lam
    equal(
        segment_gae(*arguments, segment_value=segment_value),
        reference.segment_advantages(*arguments, segment_value),
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), lengths=lengths_of_rows, gamma=unit, lam=unit)
def test_token_advantages_equal_their_twin(seed, lengths, gamma, lam):
    batch = reference.ragged(seed, lengths)
    arguments = batch["rewards"], batch["values"], batch["ids"], gamma, lam
    equal(segment_gae(*arguments, level="token"), reference.token_advantages(*arguments))


@pytest.mark.parametrize("level", ["segment", "token"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_one_segment_per_token_is_textbook_token_gae(level, gamma, lam):
    batch = reference.ragged(0, LENGTHS)
    ids = segment_ids_from_boundaries(batch["mask"], batch["mask"])
    actual = segment_gae(batch["rewards"], batch["values"], ids, gamma, lam, level)
    expected = reference.textbook_gae(batch["rewards"], batch["values"], LENGTHS, gamma, lam)
    equal(actual, expected)


@pytest.mark.parametrize("seed", range(3))
def test_lam_gamma_1_is_return_minus_the_segments_value_for_any_segmentation(seed):
    batch = reference.ragged(seed, LENGTHS)
    expected = np.zeros(batch["ids"].shape)
    for b, row in enumerate(batch["ids"]):
        for tokens in reference.segments_of_row(row):
            rest = sum(batch["rewards"][b, tokens[0] : LENGTHS[b]])
            expected[b, tokens] = rest - batch["values"][b, tokens[0]]
    equal(segment_gae(batch["rewards"], batch["values"], batch["ids"], 1.0, 1.0), expected)


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_lam_0_is_the_td_error_of_the_segment(gamma):
    batch = reference.ragged(1, LENGTHS)
    rewards, values = batch["rewards"], batch["values"]
    expected = np.zeros(values.shape)
    for b, row in enumerate(batch["ids"]):
        segments = reference.segments_of_row(row)
        for tokens, following in zip(segments, [*segments[1:], None], strict=False):
            bootstrap = gamma * values[b, following[0]] if following else 0.0
            expected[b, tokens] = rewards[b, tokens].sum() + bootstrap - values[b, tokens[0]]
    equal(segment_gae(rewards, values, batch["ids"], gamma, 0.0), expected)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_one_value_is_bootstrap_of_a_segment_and_baseline_of_the_next(lam):
    """Raising V_1 by x raises A_0 by γ(1 − λ)x and lowers A_1 by x; no other value matters."""
    ids = np.array([[0, 0, 1, 1, 2]])
    rewards, values, gamma, x = np.zeros((1, 5)), np.zeros((1, 5)), 0.9, 2.0
    values[0, 2] = x
    actual = segment_gae(rewards, values, ids, gamma, lam)
    first = gamma * (1 - lam) * x
    equal(actual, [[first, first, -x, -x, 0.0]])
    values[0, [1, 3]] = 77.0  # inside segments
    equal(segment_gae(rewards, values, ids, gamma, lam), actual)


def test_a_reward_inside_a_segment_belongs_to_it_wherever_it_falls():
    ids, values = np.array([[0, 0, 0, 1]]), np.array([[0.2, 5.0, 5.0, 0.1]])
    for t in range(3):
        rewards = np.zeros((1, 4))
        rewards[0, t] = 1.0
        actual = segment_gae(rewards, values, ids, 0.5, 0.5)
        equal(actual[0, :3], 1.0 + 0.5 * 0.1 - 0.2 + 0.25 * -0.1)
        equal(actual[0, 3], -0.1)


def test_values_and_rewards_on_padding_are_never_read():
    batch = reference.ragged(2, LENGTHS)
    dirty = {k: np.where(batch["mask"], batch[k], np.nan) for k in ("rewards", "values")}
    for kind in ({"level": "token"}, {"segment_value": "mean"}, {"segment_value": "last"}, {}):
        clean = segment_gae(batch["rewards"], batch["values"], batch["ids"], 0.9, 0.8, **kind)
        again = segment_gae(dirty["rewards"], dirty["values"], batch["ids"], 0.9, 0.8, **kind)
        np.testing.assert_array_equal(clean, again)
        assert not clean[~batch["mask"]].any()


def test_float32_input_is_summed_in_float64_and_left_alone():
    batch = reference.ragged(3, [200, 150])
    single = {k: batch[k].astype(np.float32) for k in ("rewards", "values")}
    before = {k: v.copy() for k, v in single.items()}
    actual = segment_gae(single["rewards"], single["values"], batch["ids"], 0.99, 0.95)
    twin = reference.segment_advantages(
        single["rewards"], single["values"], batch["ids"], 0.99, 0.95
    )
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, twin, rtol=0, atol=1e-10)
    for name, array in single.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("segment_value", ["mean", "last"])
def test_biased_segment_values_refuse_token_level(segment_value):
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match="level='segment'"):
        segment_gae(one, one, np.zeros((1, 1), int), 1.0, 1.0, "token", segment_value)


# --- a small MDP, enumerated ----------------------------------------------------------------------


def enumerate_mdp(seed, num_steps=4):
    """All 2^T completions of a random tabular softmax policy with reward at the end.

    Returns probability (16,), π(y_t|s_t), V(s_t), H(s_t) and r_t as (16, T), and
    scores[b, t] = ∇ log π(y_t|s_t), which for the logit θ(s) of action 1 is y − π(1|s).
    """
    random = np.random.default_rng(seed)
    num_rows = 2**num_steps
    actions = np.array(
        [[b >> (num_steps - 1 - t) & 1 for t in range(num_steps)] for b in range(num_rows)]
    )
    prob_one = 1 / (
        1 + np.exp(-random.normal(0, 1.5, (num_steps, num_rows)))
    )  # of state (t, prefix)
    final = random.normal(size=num_rows)

    probs, values, entropies = (np.zeros((num_rows, num_steps)) for _ in range(3))
    scores = np.zeros((num_rows, num_steps, num_steps, num_rows))
    for b in range(num_rows):
        for t in range(num_steps):
            prefix = b >> (num_steps - t)
            q = prob_one[t, prefix]
            probs[b, t] = q if actions[b, t] else 1 - q
            entropies[b, t] = -q * np.log(q) - (1 - q) * np.log(1 - q)
            scores[b, t, t, prefix] = actions[b, t] - q
    probability = probs.prod(1)
    for b in range(num_rows):
        for t in range(num_steps):
            same = [c for c in range(num_rows) if c >> (num_steps - t) == b >> (num_steps - t)]
            values[b, t] = probability[same] @ final[same] / probability[same].sum()
    rewards = np.zeros((num_rows, num_steps))
    rewards[:, -1] = final
    return probability, rewards, values, entropies, scores


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def mdp_cosine(seed, lam, level="segment", segment_value="start", shift=0):
    """Cosine of the expected SPO gradient to the true policy gradient."""
    probability, rewards, values, entropies, scores = enumerate_mdp(seed)
    if shift:  # values read after the token was consumed
        values = np.concatenate([values[:, shift:], np.zeros((len(values), shift))], 1)
    mask = np.ones(values.shape, bool)
    ids = segment_ids_from_boundaries(entropies >= np.median(entropies), mask)
    true = np.einsum("b,b,btij->ij", probability, rewards.sum(1), scores)
    advantages = segment_gae(rewards, values, ids, 1.0, lam, level, segment_value)
    return cosine(np.einsum("b,bt,btij->ij", probability, advantages, scores), true)


@pytest.mark.parametrize("level", ["segment", "token"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_with_a_perfect_critic_the_expected_gradient_is_the_policy_gradient(seed, lam, level):
    assert mdp_cosine(seed, lam, level) > 1 - 1e-9


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_the_value_at_a_segments_last_token_bends_the_gradient(lam):
    biased = [mdp_cosine(seed, lam, segment_value="last") for seed in range(5)]
    assert max(biased) < 0.99
    assert np.mean(biased) < 0.9


def test_values_read_one_token_late_bend_the_gradient():
    assert np.mean([mdp_cosine(seed, 0.0, shift=1) for seed in range(5)]) < 0.5


# --- group-relative advantages --------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 0.3, -2.0, float("nan")]), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    ),
    scale=st.sampled_from(["group", "batch", "none"]),
)
def test_group_advantages_are_grpos(groups, scale):
    rewards = np.array(groups).reshape(-1)
    actual = group_advantages(rewards, 3, scale)
    expected = reference.grpo_advantages(rewards.tolist(), 3, scale)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_grpo_by_hand():
    """Group (0, 1): mean 0.5, std √(0.25 + 0.25) = 0.7071; group (2, 2): std 0."""
    a = 0.5 / (0.5**0.5 + 1e-4)
    equal(group_advantages(np.array([0.0, 1.0, 2.0, 2.0]), 2), [-a, a, 0.0, 0.0])


def test_completions_that_form_no_whole_groups_are_refused():
    with pytest.raises(ValueError, match="groups of 3"):
        group_advantages(np.zeros(4), 3)


# --- normalisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_normalized_advantages_equal_their_twin(seed):
    batch = reference.ragged(seed, LENGTHS)
    actual = normalize(batch["values"], batch["mask"])
    equal(actual, reference.normalized(batch["values"], batch["mask"]))
    assert abs(actual[batch["mask"]].mean()) < 1e-12
    assert abs(actual[batch["mask"]].std() - 1) < 1e-12


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.5, 0.5 + MIN_STD / 2, 0.5]])
def test_advantages_without_spread_are_left_as_they_are(values):
    mask = np.array([[True, True, False]])
    equal(normalize(np.array([values]), mask), [[values[0], values[1], 0.0]])


def test_one_token_or_none_is_not_normalized():
    for mask in ([[True, False]], [[False, False]]):
        mask = np.array(mask)
        equal(normalize(np.array([[3.0, 4.0]]), mask), [[3.0 * mask[0, 0], 0.0]])


# --- assign_credit --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"entropy_percentile": 0.3, "gamma": 0.9, "lam": 0.7, "lam_critic": 0.4},
        {"entropy_percentile": 0.3, "advantage_level": "token", "normalize_advantages": True},
        {"entropy_percentile": 0.4, "segment_value": "mean", "lam": 0.5},
        {"entropy_percentile": 0.4, "segment_value": "last", "mask_truncated_completions": True},
        {"entropy_percentile": 1.0, "kl_in_reward": True, "beta": 0.3},
    ],
)
def test_credit_with_a_critic_is_the_composition_of_the_twins(seed, settings):
    batch = reference.rollouts(LENGTHS, 2, seed, truncated=[3], unscorable=[0])
    args = config(**settings)
    credit = assign_credit(batch, args)

    mask = batch.completion_mask.copy()
    mask[0] = False
    if args.mask_truncated_completions:
        mask[3] = False
    marked = reference.boundaries(batch.token_entropies, mask, args.entropy_percentile)
    ids = reference.segment_ids(marked, batch.completion_mask)
    rewards = batch.token_rewards.astype(np.float64)
    if args.kl_in_reward:
        rewards = rewards - args.beta * (batch.token_logprobs_old - batch.token_logprobs_ref)
    inputs = rewards, batch.token_values, ids, args.gamma
    if args.advantage_level == "token":
        advantages = reference.token_advantages(*inputs, args.lam)
    else:
        advantages = reference.segment_advantages(*inputs, args.lam, args.segment_value)
    returns = reference.token_advantages(*inputs, args.lam_critic) + batch.token_values
    if args.normalize_advantages:
        advantages = reference.normalized(advantages, mask)

    np.testing.assert_array_equal(credit.segment_ids, ids)
    equal(credit.token_advantages, np.where(mask, advantages, 0))
    equal(credit.token_returns, np.where(mask, returns, 0))
    assert credit.token_advantages.dtype == credit.token_returns.dtype == np.float32
    cut = batch.token_entropies[marked].min() if marked.any() else None
    assert credit.entropy_threshold == cut


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_credit_without_a_critic_is_grpos_on_every_token(scale, p):
    batch = reference.rollouts([4, 2, 3, 1, 5, 2], 3, critic=False, unscorable=[1])
    # p = 0.3: segments are cut and logged, but do not change the advantage
    credit = assign_credit(batch, config(scale_rewards=scale, entropy_percentile=p))
    per_row = reference.grpo_advantages(batch.completion_rewards.tolist(), 3, scale)
    equal(credit.token_advantages, np.where(batch.completion_mask, per_row[:, None], 0))
    assert credit.token_returns is None
    assert (credit.segment_ids.max() > 0) == (p > 0)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_truncated_completion_out_of_the_loss_stays_in_its_groups_mean(scale):
    """As in TRL; one that could not be scored is out of both."""
    batch = reference.rollouts([4, 2, 3, 1, 5, 2], 3, critic=False, truncated=[2], unscorable=[4])
    args = config(scale_rewards=scale, mask_truncated_completions=True)
    expected = reference.grpo_advantages(batch.completion_rewards.tolist(), 3, scale)
    mask = batch.completion_mask & ~batch.truncated[:, None]
    equal(assign_credit(batch, args).token_advantages, np.where(mask, expected[:, None], 0))


@pytest.mark.parametrize("weights", [None, [1.0, 0.2]])
@pytest.mark.parametrize("seed", range(3))
def test_reward_functions_scaled_one_by_one_equal_their_twin(seed, weights):
    random = np.random.default_rng(seed)
    rewards = random.normal(size=(12, 2)) * [1.0, 50.0]
    rewards[random.random(rewards.shape) < 0.2] = np.nan
    rewards[4] = np.nan
    each = [reference.grpo_advantages(column.tolist(), 4, "group") for column in rewards.T]
    sums = np.array(each).T @ (weights or [1.0, 1.0])
    sums[np.isnan(rewards).all(1)] = np.nan
    expected = reference.grpo_advantages(sums.tolist(), 12, "group")
    equal(objective_advantages(rewards, weights, 4), expected)


def test_a_reward_of_a_large_spread_does_not_drown_the_others():
    """The answer decides within ±1, the length within ±100; both point the other way."""
    rewards = np.array([[1.0, -100.0], [0.0, 100.0], [1.0, -100.0], [0.0, 100.0]])
    batch = dataclasses.replace(
        reference.rollouts([3, 2, 4, 1], 4, critic=False),
        rewards_by_function=rewards.astype(np.float32),
        completion_rewards=rewards.sum(1).astype(np.float32),
    )
    settings = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.5]}
    advantages = assign_credit(batch, config(**settings)).token_advantages[:, 0]
    np.testing.assert_allclose(advantages, np.array([1, -1, 1, -1]) * np.sqrt(3 / 4), rtol=1e-3)


def test_group_advantages_are_never_rescaled():
    batch = reference.rollouts([4, 2, 3, 1], 2, critic=False)
    plain, normalizing = (
        assign_credit(batch, config(normalize_advantages=on)) for on in (False, True)
    )
    np.testing.assert_array_equal(plain.token_advantages, normalizing.token_advantages)


def test_p_0_and_lam_1_is_reward_minus_the_value_of_the_prompt():
    batch = reference.rollouts(LENGTHS, 2)
    credit = assign_credit(batch, config(entropy_percentile=0.0, lam=1.0))
    per_row = batch.token_rewards.sum(1) - batch.token_values[:, 0]
    equal(credit.token_advantages, np.where(batch.completion_mask, per_row[:, None], 0))
    assert credit.entropy_threshold is None
    assert credit.segment_ids.max() == 0


def test_p_1_is_textbook_gae():
    batch = reference.rollouts(LENGTHS, 2)
    credit = assign_credit(batch, config(entropy_percentile=1.0, lam=0.9, gamma=0.8))
    expected = reference.textbook_gae(batch.token_rewards, batch.token_values, LENGTHS, 0.8, 0.9)
    equal(credit.token_advantages, expected)


def test_lam_critic_1_makes_returns_the_reward_to_go():
    batch = reference.rollouts(LENGTHS, 2)
    dense = np.where(batch.completion_mask, np.float32(0.5), 0) + batch.token_rewards
    batch = dataclasses.replace(batch, token_rewards=dense)
    credit = assign_credit(batch, config(entropy_percentile=0.4, lam=0.3))
    to_go = np.cumsum(dense[:, ::-1], 1)[:, ::-1]
    equal(credit.token_returns, np.where(batch.completion_mask, to_go, 0))


@pytest.mark.parametrize(
    "settings", [{}, {"mask_truncated_completions": True}, {"kl_in_reward": True, "beta": 0.3}]
)
def test_monte_carlo_returns_are_the_critics_targets_whatever_its_values(settings):
    batch = reference.rollouts(LENGTHS, 2, truncated=[3], unscorable=[0])
    args = config(entropy_percentile=0.4, lam=0.3, **settings)
    returns = monte_carlo_returns(batch, args)
    returns *= batch.loss_mask(args.mask_truncated_completions)
    assert np.abs(returns).max() > 0.1
    equal(assign_credit(batch, args).token_returns, returns)


def test_returns_come_from_raw_advantages():
    batch = reference.rollouts(LENGTHS, 2)
    raw, scaled = (assign_credit(batch, config(normalize_advantages=on)) for on in (False, True))
    assert abs(raw.token_advantages - scaled.token_advantages).max() > 0.01
    np.testing.assert_array_equal(raw.token_returns, scaled.token_returns)


@pytest.mark.parametrize("biased", [{"segment_value": "last"}, {"advantage_level": "token"}])
def test_returns_do_not_depend_on_how_the_policy_reads_segments(biased):
    batch = reference.rollouts(LENGTHS, 2)
    plain = assign_credit(batch, config(entropy_percentile=0.4, lam_critic=0.5))
    other = assign_credit(batch, config(entropy_percentile=0.4, lam_critic=0.5, **biased))
    np.testing.assert_array_equal(plain.token_returns, other.token_returns)


def test_kl_in_reward_subtracts_beta_k1_per_token():
    batch = reference.rollouts([3, 2], 2)
    args = {"entropy_percentile": 1.0, "lam": 0.0}
    plain = assign_credit(batch, config(**args)).token_advantages
    penalised = assign_credit(batch, config(kl_in_reward=True, beta=0.5, **args)).token_advantages
    k1 = batch.token_logprobs_old - batch.token_logprobs_ref
    equal(penalised - plain, np.where(batch.completion_mask, -0.5 * k1, 0))


INVARIANCE_CONFIGS = [
    {"critic": True},
    {"critic": True, "kl_in_reward": True, "beta": 0.2, "normalize_advantages": True},
    {"critic": True, "mask_truncated_completions": True, "segment_value": "mean"},
    {"critic": False},
    {"critic": False, "kl_in_reward": True, "beta": 0.2, "scale_rewards": "batch"},
]


@pytest.mark.parametrize("settings", INVARIANCE_CONFIGS)
def test_padding_columns_and_garbage_in_them_change_no_credit(settings):
    settings = dict(settings)
    kwargs = {"critic": settings.pop("critic"), "truncated": [3], "unscorable": [4]}
    args = config(entropy_percentile=0.3, **settings)
    clean = assign_credit(reference.rollouts(LENGTHS, 2, **kwargs), args)
    dirty = assign_credit(
        reference.rollouts(LENGTHS, 2, padding=np.nan, extra_columns=2, **kwargs), args
    )
    for field in dataclasses.fields(clean):
        a, b = getattr(clean, field.name), getattr(dirty, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b[:, :-2], err_msg=field.name)
            assert not (b[:, -2:] + (field.name == "segment_ids")).any()
        else:
            assert a == b


@pytest.mark.parametrize("settings", INVARIANCE_CONFIGS)
def test_the_order_of_groups_moves_credit_and_does_not_change_it(settings):
    settings = dict(settings)
    batch = reference.rollouts(LENGTHS, 2, critic=settings.pop("critic"), truncated=[3])
    args = config(entropy_percentile=0.3, **settings)
    order = np.array([4, 5, 0, 1, 2, 3])
    straight, moved = assign_credit(batch, args), assign_credit(select_rows(batch, order), args)
    np.testing.assert_array_equal(straight.segment_ids[order], moved.segment_ids)
    equal(straight.token_advantages[order], moved.token_advantages)
    if straight.token_returns is not None:
        np.testing.assert_array_equal(straight.token_returns[order], moved.token_returns)


@pytest.mark.parametrize("critic", [True, False])
def test_an_unscorable_row_leaves_the_others_as_if_it_were_not_there(critic):
    """Its entropies, values and rewards are out of ranking, baseline and normalisation."""
    batch = reference.rollouts(LENGTHS, 6, critic=critic, unscorable=[0])
    wild = {
        name: np.where(np.arange(6)[:, None] == 0, np.float32(50.0), getattr(batch, name))
        for name in ("token_entropies", "token_logprobs_old")
    }
    if critic:
        wild["token_values"] = np.where(np.arange(6)[:, None] == 0, 9.0, batch.token_values)
    args = config(num_generations=6, entropy_percentile=0.3, normalize_advantages=True)
    credit = assign_credit(batch, args)
    other = assign_credit(dataclasses.replace(batch, **wild), args)
    for field in ("segment_ids", "token_advantages", "token_returns", "entropy_threshold"):
        np.testing.assert_array_equal(getattr(credit, field), getattr(other, field))
    assert not credit.token_advantages[0].any()
    assert credit.segment_ids[0, : LENGTHS[0]].max() == 0
    if not critic:  # as a batch that never had the row
        rest = select_rows(batch, slice(1, None))
        alone = assign_credit(dataclasses.replace(rest, num_generations=5), args)
        equal(credit.token_advantages[1:], alone.token_advantages)


def test_assign_credit_changes_none_of_its_input():
    batch = reference.rollouts(LENGTHS, 2, truncated=[3], unscorable=[4])
    before = {
        f.name: np.copy(getattr(batch, f.name))
        for f in dataclasses.fields(Rollouts)
        if isinstance(getattr(batch, f.name), np.ndarray)
    }
    args = config(kl_in_reward=True, beta=0.1, mask_truncated_completions=True)
    assign_credit(batch, args)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(batch, name), array, err_msg=name)
