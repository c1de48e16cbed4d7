"""A run's history -> what is wrong with it, in sentences. Pure, numpy.

Each verdict holds from its step to the end of the run; spikes stand alone. A sentence is said only
where the numbers leave little doubt, as a healthy run must read as one.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from spo.inspector.history import History, Series
from spo.inspector.markup import link

MIN_STEPS = 30
"""Shorter runs say nothing about trends."""
ENTROPY_SHARE = 0.5
TRUNCATED_SHARE = 0.25
NO_CONTRAST_SHARE = 0.6
KL_LIMIT = 0.3
DISTINCT_SHARE = 0.5
SPIKE_MADS = 12.0
SPIKE_TIMES = 5.0
SETTLING = 3
FLAT_GAIN = 0.1
LENGTH_GROWTH = 1.25


@dataclass(frozen=True)
class Verdict:
    """A finding: which, the step from which it holds, one sentence, the series that shows it."""

    kind: str
    since: int
    sentence: str
    series: str


@lru_cache(maxsize=8)
def verdicts(history: History) -> list[Verdict]:
    """What stands out in a run, the gravest first."""
    reward = known(history.series("reward"))
    found = [
        flat_reward(reward),
        collapsed_entropy(known(history.series("entropy"))),
        *spikes(history),
        share_above(
            known(history.series("completions/clipped_ratio")),
            "truncated",
            "completions/clipped_ratio",
            TRUNCATED_SHARE,
            "Over {limit:.0%} of the completions are cut off at the length limit since step "
            "{since}.",
        ),
        share_above(
            known(history.series("frac_reward_zero_std")),
            "no contrast",
            "frac_reward_zero_std",
            NO_CONTRAST_SHARE,
            "Over {limit:.0%} of the prompts give no contrast since step {since}: all their "
            "completions have one reward.",
        ),
        weak_critic(history),
        growing_length(known(history.series("completions/mean_length")), reward),
        one_function(history),
        duplicates(known(history.indexed("distinct"))),
        share_above(
            known(history.series("kl")),
            "kl",
            "kl",
            KL_LIMIT,
            "KL to the reference exceeds {limit} nats a token since step {since}.",
        ),
    ]
    return [verdict for verdict in found if verdict]


def known(series: Series | None) -> Series | None:
    """Without NaN; None where too few numbers are left."""
    if series is None:
        return None
    finite = np.isfinite(series.values)
    kept = Series(series.steps[finite], series.values[finite])
    return kept if len(kept.steps) >= MIN_STEPS else None


def smooth(values: np.ndarray, width: int | None = None) -> np.ndarray:
    """A centred moving average, narrower at the ends; by default over a thirtieth of the run.

    >>> smooth(np.array([0.0, 3.0, 0.0]), 3)
    array([1.5, 1. , 1.5])
    """
    half = max(1, (width or max(3, len(values) // 30)) // 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def holds_since(condition: np.ndarray) -> int | None:
    """Position from which a condition holds to the end; None where it does not, or barely.

    >>> holds_since(np.array([True, False] + [True] * 5))
    2
    """
    if not condition.size or not condition[-1]:
        return None
    misses = np.flatnonzero(~condition)
    start = int(misses[-1]) + 1 if misses.size else 0
    return start if len(condition) - start >= max(5, len(condition) // 20) else None


def flat_reward(reward: Series | None) -> Verdict | None:
    """From a step on the reward gains, at best, a tenth of what it ranged over."""
    since = flat_since(reward) if reward else None
    if since is None:
        return None
    return Verdict("flat", since, f"The reward is flat since step {since}.", "reward")


def flat_since(reward: Series) -> int | None:
    """The step; None where the reward still rises, or has solved what there is to solve."""
    values = reward.values
    count = len(values)
    level = smooth(values)
    spread = float(level.max() - level.min())
    noise = float(np.std(values - level))
    rose = spread > 4 * noise / np.sqrt(max(3, count // 30))
    range_ = spread if rose else max(spread, noise)
    late = count * 6 // 10  # what is called flat lasts two fifths of the run or more
    if upper_gain(values[late:]) > FLAT_GAIN * range_ * 2 or solved(level[late:], values):
        return None
    return int(reward.steps[change_point(values, late)])


def upper_gain(values: np.ndarray) -> float:
    """What a straight line through the values gains from end to end, at most (+ 2 std errors)."""
    x = np.linspace(-0.5, 0.5, len(values))
    slope = float((x * values).sum() / (x * x).sum())
    residual = values - values.mean() - slope * x
    error = float(np.sqrt((residual**2).sum() / max(len(values) - 2, 1) / (x * x).sum()))
    return slope + 2 * error


def solved(level: np.ndarray, values: np.ndarray) -> bool:
    """Whether the reward stays near the best it has ever been, and that is where it had room for
    no more: within 3 % of the largest mean of a step."""
    best = values.max()
    return bool(best > 0 and level.mean() >= 0.97 * best and level.min() >= 0.9 * best)


def change_point(values: np.ndarray, latest: int) -> int:
    """Where a rising line turns into a constant: the split with the least squared error."""
    best, where = np.inf, 0
    for split in range(0, latest + 1, max(1, latest // 200)):
        after = values[split:]
        error = ((after - after.mean()) ** 2).sum()
        if split > 2:
            x = np.linspace(-1, 0, split)  # the line ends at the constant's level
            before = values[:split] - after.mean()
            slope = (x * before).sum() / (x * x).sum()
            error += ((before - slope * x) ** 2).sum()
        if error < best:
            best, where = error, split
    return where


def below_its_start(series: Series, share: float) -> tuple[int | None, np.ndarray]:
    """The step since which a smoothed series is below this share of its first values, if any; and
    the smoothed series."""
    level = smooth(series.values)
    start = level[: max(3, len(level) // 20)].mean()
    at = holds_since(level < share * start)
    return None if at is None else int(series.steps[at]), level


def collapsed_entropy(entropy: Series | None) -> Verdict | None:
    if entropy is None:
        return None
    since, level = below_its_start(entropy, ENTROPY_SHARE)
    if since is None:
        return None
    words = f"Entropy is below half of its start since step {since} (now {level[-1]:.2g} nats)."
    return Verdict("entropy", since, words, "entropy")


def share_above(
    series: Series | None, kind: str, name: str, limit: float, sentence: str
) -> Verdict | None:
    """A share or another number that stays above its limit."""
    if series is None:
        return None
    at = holds_since(smooth(series.values) > limit)
    if at is None:
        return None
    since = int(series.steps[at])
    return Verdict(kind, since, sentence.format(limit=limit, since=since), name)


def spikes(history: History) -> list[Verdict]:
    """The largest gradient of each network that lies SPIKE_MADS beyond its neighbours."""
    names = {"grad_norm": "Gradient spike", "spo/value_grad_norm": "Spike of the critic's gradient"}
    found = []
    for name, words in names.items():
        series = known(history.series(name))
        if series is None:
            continue
        size = excess(series.values)
        size[:SETTLING] = 0.0  # a critic that begins at zero takes one large step
        at = int(np.argmax(size))
        if size[at] <= 1.0:
            continue
        step = int(series.steps[at])
        others = int((size > 1.0).sum()) - 1
        more = f", and {others} more" if others else ""
        usual = float(np.median(series.values))
        times = series.values[at] / max(usual, 1e-12)
        sentence = f"{words} at step {step}: {times:.0f} times the usual{more}."
        found.append(Verdict("spike", step, sentence, name))
    return found


def excess(values: np.ndarray, reach: int = 50) -> np.ndarray:
    """How far each value lies above the median of its neighbours; 1 where it is SPIKE_MADS MADs and
    SPIKE_TIMES the median, as gradients have heavy tails."""
    sizes = np.zeros(len(values))
    for at in range(len(values)):
        near = values[max(0, at - reach) : at + reach + 1]
        median = np.median(near)
        mad = np.median(np.abs(near - median))
        far = max(SPIKE_MADS * mad, (SPIKE_TIMES - 1) * abs(median), 1e-12)
        sizes[at] = (values[at] - median) / far
    return sizes


def weak_critic(history: History) -> Verdict | None:
    """V at every token explains less of the returns than V of the prompt alone."""
    whole = history.indexed("explained_variance")
    prompt = history.indexed("explained_variance_prompt")
    if whole is None or prompt is None:
        return None
    both = np.isfinite(whole.values) & np.isfinite(prompt.values)
    if both.sum() < 2 * MIN_STEPS // 3:
        return None
    margin = smooth(prompt.values[both]) - smooth(whole.values[both])
    at = holds_since(margin > 0.02)
    if at is None:
        return None
    since = int(whole.steps[both][at])
    words = f"The critic explains less than its value of the prompt alone since step {since}."
    return Verdict("critic", since, words, "spo/explained_variance")


def growing_length(length: Series | None, reward: Series | None) -> Verdict | None:
    """The completions grow by a quarter or more while the reward gains nothing."""
    if length is None or reward is None:
        return None
    level = smooth(length.values)
    start = first_growth(length.values, len(level) * 7 // 10)
    if level[-1] < LENGTH_GROWTH * level[start]:
        return None
    total = smooth(reward.values)
    after = reward.values[reward.steps >= length.steps[start]]
    if len(after) < MIN_STEPS // 3 or upper_gain(after) > 2 * FLAT_GAIN * np.ptp(total):
        return None
    since, grown = int(length.steps[start]), level[-1] / level[start] - 1
    words = f"Completions grow by {grown:.0%} since step {since} while the reward does not."
    return Verdict("length", since, words, "completions/mean_length")


def first_growth(values: np.ndarray, latest: int) -> int:
    """Where a constant turns into a rising line: `change_point`, read backwards."""
    best, where = np.inf, 0
    for split in range(3, latest + 1, max(1, latest // 200)):
        before, after = values[:split], values[split:]
        x = np.linspace(0, 1, len(after))
        slope = (x * (after - before.mean())).sum() / (x * x).sum()
        error = ((before - before.mean()) ** 2).sum()
        error += ((after - before.mean() - slope * x) ** 2).sum()
        if error < best:
            best, where = error, split
    return where


def one_function(history: History) -> Verdict | None:
    """One reward function gains, all the others do not."""
    names = history.reward_functions
    gains = {}
    for name in names:
        series = known(history.series(f"rewards/{name}/mean"))
        if series is None:
            continue
        tenth = max(3, len(series.values) // 10)
        first, last = series.values[:tenth], series.values[-tenth:]
        error = np.sqrt(first.var() / tenth + last.var() / tenth)
        gains[name] = (last.mean() - first.mean(), error)
    if len(gains) < 2:
        return None
    winner = max(gains, key=lambda name: gains[name][0])
    gain, error = gains[winner]
    rest = [other for name, (other, _) in gains.items() if name != winner]
    if gain <= 5 * error or max(rest) > 0.05 * gain:
        return None
    return Verdict(
        "one function",
        int(history.series(f"rewards/{winner}/mean").steps[0]),
        f"{winner} carries all the gain in reward ({gain:+.2g}); no other function gains.",
        f"rewards/{winner}/mean",
    )


def duplicates(distinct: Series | None) -> Verdict | None:
    if distinct is None:
        return None
    since, level = below_its_start(distinct, DISTINCT_SHARE)
    if since is None:
        return None
    words = f"Only {level[-1]:.0%} of a step's completions are different texts since step {since}."
    return Verdict("duplicates", since, words, "distinct")


def verdicts_html(found: list[Verdict], history: History) -> str:
    """The verdicts as links to the step they begin at, or that there are none."""
    steps = [line["step"] for line in history.lines]
    items = []
    for verdict in found:
        near = min(steps, key=lambda step: abs(step - verdict.since), default=None)
        words = link(verdict.sentence, run=history.run, tab="step", step=near)
        items.append(f'<li class="verdict">{words}</li>')
    if not items:
        items = ["<li>Nothing stands out in this run.</li>"]
    wait = ""
    if history.progress < 1:
        wait = f'<p class="hint">Reading older steps: {history.progress:.0%}.</p>'
    body = f"<h3>What stands out</h3><ul>{''.join(items)}</ul>{wait}"
    return f'<div class="spo small verdicts">{body}</div>'
