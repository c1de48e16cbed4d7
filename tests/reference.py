"""Naive float64 twins of the pure functions, one Python loop per sum, and random ragged batches.

Written from the formulas, not from the code they check: no scan, no scatter, no vectorisation.
Rows are lists or 1-d arrays; a masked token is skipped, never multiplied by zero.
"""

import math

import numpy as np

# --- segments -------------------------------------------------------------------------------------


def boundaries(token_entropies, completion_mask, p):
    """The round(p·N) largest entropies, ties by (row, position), none at H <= 1e-6 unless p = 1."""
    tokens = [
        (-float(token_entropies[b][t]), b, t)
        for b in range(len(completion_mask))
        for t in range(len(completion_mask[b]))
        if completion_mask[b][t]
    ]
    count = round(p * len(tokens))
    marked = np.zeros(np.shape(completion_mask), dtype=bool)
    for negative_entropy, b, t in sorted(tokens)[:count]:
        if p == 1 or -negative_entropy > 1e-6:
            marked[b, t] = True
    return marked


def segment_ids(marked, completion_mask):
    """0, 1, 2, … along each row; a boundary starts a segment, token 0 always starts segment 0."""
    ids = np.full(np.shape(completion_mask), -1, dtype=np.int64)
    for b in range(len(ids)):
        current = 0
        for t in range(len(ids[b])):
            if not completion_mask[b][t]:
                break
            if t > 0 and marked[b][t]:
                current += 1
            ids[b, t] = current
    return ids


def segments_of_row(ids):
    """[[token positions of segment 0], [of segment 1], …] of one row of segment ids."""
    segments = {}
    for t, k in enumerate(ids):
        if k >= 0:
            segments.setdefault(int(k), []).append(t)
    return [segments[k] for k in sorted(segments)]


# --- advantages -----------------------------------------------------------------------------------


def segment_advantages(rewards, values, ids, gamma, lam, segment_value="start"):
    """δ_k = R_k + γ V_{k+1} − V_k, A_k = δ_k + γ λ A_{k+1}, V_K = 0; A_k on every token of k."""
    advantages = np.zeros(np.shape(ids))
    for b in range(len(ids)):
        segments = segments_of_row(ids[b])
        next_advantage = next_value = 0.0
        for tokens in reversed(segments):
            value = {
                "start": float(values[b][tokens[0]]),
                "mean": sum(float(values[b][t]) for t in tokens) / len(tokens),
                "last": float(values[b][tokens[-1]]),
            }[segment_value]
            reward = sum(float(rewards[b][t]) for t in tokens)
            delta = reward + gamma * next_value - value
            next_advantage = delta + gamma * lam * next_advantage
            next_value = value
            for t in tokens:
                advantages[b, t] = next_advantage
    return advantages


def token_advantages(rewards, values, ids, gamma, lam):
    """A_t = δ_t + g l A_{t+1}, δ_t = r_t + g V_{t+1} − V_t.

    g, l = γ, λ where t+1 starts a segment, 1 inside one.
    """
    advantages = np.zeros(np.shape(ids))
    for b in range(len(ids)):
        length = sum(1 for k in ids[b] if k >= 0)
        for t in reversed(range(length)):
            if t + 1 == length:
                advantages[b, t] = float(rewards[b][t]) - float(values[b][t])
                continue
            starts = ids[b][t + 1] != ids[b][t]
            g, decay = (gamma, lam) if starts else (1.0, 1.0)
            delta = float(rewards[b][t]) + g * float(values[b][t + 1]) - float(values[b][t])
            advantages[b, t] = delta + g * decay * advantages[b, t + 1]
    return advantages


def textbook_gae(rewards, values, lengths, gamma, lam):
    """Token GAE as the explicit sum A_t = Σ_l (γλ)^l δ_{t+l} (arXiv 1506.02438, eq. 16)."""
    advantages = np.zeros(np.shape(rewards))
    for b, length in enumerate(lengths):
        deltas = []
        for t in range(length):
            bootstrap = float(values[b][t + 1]) if t + 1 < length else 0.0
            deltas.append(float(rewards[b][t]) + gamma * bootstrap - float(values[b][t]))
        for t in range(length):
            advantages[b, t] = sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, length))
    return advantages


def grpo_advantages(rewards, num_generations, scale):
    """(r − group mean) / (std + 1e-4), std with n − 1, NaN rows out of both and 0 themselves."""

    def known(values):
        return [float(r) for r in values if not math.isnan(r)]

    def std(values):
        values = known(values)
        if len(values) < 2:
            return 0.0
        mean = sum(values) / len(values)
        return math.sqrt(sum((r - mean) ** 2 for r in values) / (len(values) - 1))

    advantages = []
    for b, reward in enumerate(rewards):
        if math.isnan(reward):
            advantages.append(0.0)
            continue
        first = b // num_generations * num_generations
        group = rewards[first : first + num_generations]
        advantage = float(reward) - sum(known(group)) / len(known(group))
        if scale == "group":
            advantage /= std(group) + 1e-4
        if scale == "batch":
            advantage /= std(rewards) + 1e-4
        advantages.append(advantage)
    return np.array(advantages)


def normalized(advantages, mask):
    """Mean 0 and std 1 over the masked tokens, 0 elsewhere; unscaled if std < 1e-6."""
    chosen = [
        float(advantages[b][t]) for b in range(len(mask)) for t in range(len(mask[b])) if mask[b][t]
    ]
    mean, std = 0.0, 0.0
    if chosen:
        mean = sum(chosen) / len(chosen)
        std = math.sqrt(sum((a - mean) ** 2 for a in chosen) / len(chosen))
    result = np.zeros(np.shape(mask))
    for b in range(len(mask)):
        for t in range(len(mask[b])):
            if mask[b][t]:
                scaled = len(chosen) >= 2 and std >= 1e-6
                a = float(advantages[b][t])
                result[b, t] = (a - mean) / std if scaled else a
    return result


# --- losses ---------------------------------------------------------------------------------------


def weights(mask, loss_type, max_completion_length):
    """Weight of each token so that Σ weight · loss is the loss of the whole update."""
    lengths = [sum(bool(m) for m in row) for row in mask]
    total, rows = sum(lengths), sum(n > 0 for n in lengths)
    result = np.zeros(np.shape(mask))
    for b, n in enumerate(lengths):
        for t in range(len(mask[b])):
            if mask[b][t]:
                result[b, t] = {
                    "dapo": 1 / total,
                    "bnpo": 1 / total,
                    "grpo": 1 / (rows * n),
                    "dr_grpo": 1 / (rows * max_completion_length),
                    "cispo": 1 / total,
                    "sapo": 1 / (rows * n),
                }[loss_type]
    return result


def policy_loss(
    logprobs,
    logprobs_old,
    advantages,
    token_weights,
    ids,
    epsilon,
    epsilon_high,
    delta=None,
    level="token",
    logprobs_ref=None,
    beta=0.0,
    loss_type="dapo",
    sapo_temperatures=(1.0, 1.05),
    use_bias_correction_kl=False,
):
    """Σ w [−surrogate + β k3], token by token; differentiable in `logprobs`."""
    import torch

    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(ids)):
        in_loss = [t for t in range(len(ids[b])) if token_weights[b][t] > 0]
        for t in in_loss:
            if level == "token":
                peers = [t]
            elif level == "segment":
                peers = [u for u in in_loss if ids[b][u] == ids[b][t]]
            else:
                peers = in_loss
            log_ratio = sum(logprobs[b][u] - logprobs_old[b][u] for u in peers) / len(peers)
            ratio, advantage = torch.exp(log_ratio), float(advantages[b][t])
            bounded = (
                ratio
                if delta is None or ratio <= delta
                else torch.tensor(delta, dtype=torch.float64)
            )
            if ratio < 1 - epsilon:
                clipped = torch.tensor(1 - epsilon, dtype=torch.float64)
            elif ratio > 1 + epsilon_high:
                clipped = torch.tensor(1 + epsilon_high, dtype=torch.float64)
            else:
                clipped = ratio
            first, second = bounded * advantage, clipped * advantage
            loss = -(first if first <= second else second)
            if loss_type == "cispo":
                loss = -min(ratio.item(), epsilon_high) * advantage * logprobs[b][t]
            if loss_type == "sapo":
                tau = sapo_temperatures[0] if advantage > 0 else sapo_temperatures[1]
                loss = -4 / tau / (1 + torch.exp(-tau * (ratio - 1))) * advantage
            if beta:
                difference = logprobs_ref[b][t] - logprobs[b][t]
                k3 = torch.exp(difference) - difference - 1
                loss = loss + beta * k3 * (ratio if use_bias_correction_kl else 1)
            total = total + float(token_weights[b][t]) * loss
    return total


def value_loss(values, returns, values_old, token_weights, cliprange=None):
    """Σ w ½ (V − return)², or the larger of that and the same at the clipped V."""
    import torch

    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(token_weights)):
        for t in range(len(token_weights[b])):
            if not token_weights[b][t] > 0:
                continue
            loss = (values[b][t] - returns[b][t]) ** 2
            if cliprange is not None:
                moved = values[b][t] - values_old[b][t]
                moved = moved if abs(moved) <= cliprange else cliprange * torch.sign(moved).detach()
                clipped = (values_old[b][t] + moved - returns[b][t]) ** 2
                loss = loss if loss >= clipped else clipped
            total = total + float(token_weights[b][t]) * 0.5 * loss
    return total


# --- random batches -------------------------------------------------------------------------------


def mask_of(lengths, num_columns=None):
    """True on the first n tokens of each row."""
    num_columns = max(lengths, default=0) if num_columns is None else num_columns
    return np.array([[t < n for t in range(num_columns)] for n in lengths], dtype=bool).reshape(
        len(lengths), num_columns
    )


def ragged(seed, lengths):
    """Random mask, entropies (with exact ties and zeros), rewards, values and segment ids."""
    random = np.random.default_rng(seed)
    mask = mask_of(lengths)
    entropies = random.exponential(1.0, mask.shape)
    entropies[random.random(mask.shape) < 0.3] = 0.0
    entropies[random.random(mask.shape) < 0.3] = 0.75
    ids = segment_ids(random.random(mask.shape) < random.random(), mask)
    return {
        "mask": mask,
        "entropies": entropies,
        "rewards": random.normal(size=mask.shape),
        "values": random.normal(size=mask.shape),
        "ids": ids,
    }


def rollouts(
    lengths,
    num_generations,
    seed=0,
    *,
    critic=True,
    reference=True,
    truncated=(),
    unscorable=(),
    padding=0.0,
    extra_columns=0,
):
    """A random `Rollouts` as the trainer builds it: floats are float32, a reward ends each row.

    `padding` fills every float beyond a row's length; `truncated` and `unscorable` name rows.
    """
    from spo.rollouts import Rollouts

    random = np.random.default_rng(seed)
    num_rows, width = len(lengths), max(lengths, default=0)
    mask = mask_of(lengths, width + extra_columns)

    def floats(draw):
        array = np.full(mask.shape, padding, np.float32)
        array[:, :width] = np.where(mask[:, :width], draw.astype(np.float32), padding)
        return array

    def normal():
        return floats(random.normal(size=(num_rows, width)))

    def logprobs():
        return floats(-random.exponential(1.0, (num_rows, width)))

    rewards = random.normal(size=num_rows).astype(np.float32)
    by_function = np.stack([rewards, np.zeros_like(rewards)], 1)
    token_rewards = floats(np.zeros((num_rows, width)))
    for b, n in enumerate(lengths):
        if n:
            token_rewards[b, n - 1] = rewards[b]
    for b in unscorable:
        rewards[b], by_function[b], token_rewards[b, : lengths[b]] = np.nan, np.nan, 0.0
    ids = np.zeros(mask.shape, np.int64)
    ids[:, :width] = np.where(mask[:, :width], random.integers(97, 123, (num_rows, width)), 0)
    return Rollouts(
        step=3,
        num_generations=num_generations,
        prompts=[f"prompt {b // num_generations}" for b in range(num_rows)],
        completions=["".join(chr(i) for i in row[:n]) for row, n in zip(ids, lengths, strict=True)],
        prompt_ids=[[1, 2, 3 + b // num_generations] for b in range(num_rows)],
        token_ids=ids,
        completion_mask=mask,
        token_ends=np.where(mask, np.arange(1, mask.shape[1] + 1), -1),
        token_entropies=floats(random.exponential(1.0, (num_rows, width))),
        token_logprobs_old=logprobs(),
        token_logprobs_ref=logprobs() if reference else None,
        token_values=normal() if critic else None,
        token_rewards=token_rewards,
        completion_rewards=rewards,
        rewards_by_function=by_function,
        reward_names=["accuracy", "format"],
        truncated=np.isin(np.arange(num_rows), list(truncated)),
        prompt_index=np.arange(num_rows) // num_generations,
    )


def save(batch, path, config, run_id=""):
    """A rollout file with the credit that the configuration gives."""
    from spo.advantages import assign_credit
    from spo.rollouts import save_rollouts

    return save_rollouts(batch, path, assign_credit(batch, config), config, run_id)
