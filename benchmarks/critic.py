"""Critics on rollouts of a base model with a habit -> explained variance, and credit beside exact.

    python benchmarks/critic.py                      # a few minutes, bases and rollouts included
    python benchmarks/critic.py --tasks smoke --steps 4 --repeats 1 --out build/smoke

The base is not trained, so what a critic can know stays the same while it sees more completions.
Where exact values are known, the advantages a critic's values give are compared with those of the
exact values, segment by segment, at several λ.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import RESULTS, write_result
from critic_rollouts import BATCH, Base, ExactValues, lab_task, record
from jaxtyping import Bool, Float, Int

from spo.advantages import segment_gae
from spo.rollouts import Rollouts
from spo.segments import find_boundaries, segment_ids_from_boundaries, segment_starts
from spo.values.alignment import ItemKind
from spo.values.coefficient import AutoLambda, value_coefficients
from spo.values.peers import PeerInputs
from spo.values.reference import ReferenceInputs
from spo.values.references import References
from spo.values.regression import Inputs, Ridge
from spo.values.rest import RestInputs
from spo.values.surprisal import SurprisalInputs

PERCENTILE = 0.2
SEEN = (8, 16, 24, 32, 40, 64, 128, 256, 512)
"""With cross-fitting in a batch of 16, each half valued by a fit to the past and the other half,
the first three updates stand at 8, 24 and 40 instead of 0, 16 and 32."""
DIAGNOSED = (64, 256)
LAMS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.95, 1.0)
UPDATE = 8
"""Completions a critic is fitted on at a time."""


@dataclass(frozen=True)
class Critic:
    """What a critic reads, from completions in groups of so many, and how it is fitted.

    Attributes:
        origin: where its references come from, as in `value_reference`.
    """

    inputs: Callable[[Base], list[Inputs]]
    num_generations: int = 1
    fit: dict = field(default_factory=dict)
    only_for: str | None = None
    origin: str | None = None

    def read(self, base: Base, rollouts: Rollouts, segment_ids: np.ndarray) -> np.ndarray:
        if self.origin is not None:
            rollouts = References([self.origin]).find(rollouts)
        found = [each.read(rollouts, segment_ids) for each in self.inputs(base)]
        return np.concatenate(found, axis=-1).astype(np.float64)


NUMBERS, WORDS, SYMBOLS = ("numbers",), ("words",), ("symbols",)
BOTH = NUMBERS + WORDS
LOW_RIDGE = {"ridge": (1.0, 10.0, 30.0)}


PATH = ("surprisal",)


def _aligned(
    origin: str = "solution",
    items: tuple[ItemKind, ...] = NUMBERS,
    num_generations: int = 1,
    *,
    more: tuple[str, ...] = PATH,
    fit: dict | None = None,
    only_for: str | None = None,
) -> Critic:
    """Alignment with a reference, beside the surprisal of the path unless told otherwise."""

    def inputs(base: Base) -> list[Inputs]:
        known: dict[str, Inputs] = {
            "surprisal": SurprisalInputs(),
            "rest": RestInputs(base.score, items[0]),
            "peers": PeerInputs(),
            "hint": base.hint,
            "likelihood": base.likelihood,
        }
        return [*(known[name] for name in more), ReferenceInputs(items)]

    return Critic(inputs, num_generations, fit or {}, only_for, origin)


SUM = "chain_sum_habit"
CRITICS = {
    "surprisal_old": Critic(
        lambda _: [SurprisalInputs()], 1, {"ridge": (10.0, 10.0, 10.0), "clip": False}
    ),
    "surprisal": Critic(lambda _: [SurprisalInputs()]),
    "alignment_without_surprisal": _aligned(items=BOTH, more=()),
    "alignment": _aligned(),
    "alignment_words": _aligned(items=WORDS),
    "alignment_symbols": _aligned(items=SYMBOLS),
    "alignment_numbers_and_words": _aligned(items=BOTH),
    "alignment_unclipped": _aligned(fit={"clip": False}, items=BOTH),
    "alignment_ridge_30": _aligned(fit=LOW_RIDGE, items=BOTH),
    "alignment_and_rest": _aligned(more=(*PATH, "rest"), items=BOTH),
    "alignment_and_rest_ridge_30": _aligned(more=(*PATH, "rest"), fit=LOW_RIDGE, items=BOTH),
    "prose": _aligned("prose", only_for=SUM),
    "results": _aligned("results", only_for=SUM),
    "every_second_result": _aligned("every_second_result", only_for=SUM),
    "answer": _aligned("answer", BOTH),
    "answer_likelihood": Critic(lambda base: [SurprisalInputs(), base.likelihood]),
    "alignment_and_answer_likelihood": _aligned(more=(*PATH, "likelihood")),
    "hint": Critic(lambda base: [SurprisalInputs(), base.hint], origin="solution"),
    "alignment_and_hint": _aligned(more=(*PATH, "hint")),
    "peers": Critic(lambda _: [SurprisalInputs(), PeerInputs()], 8),
    "peer": _aligned("peer", BOTH, 8),
    "peer_and_peers": _aligned("peer", BOTH, 8, more=(*PATH, "peers")),
    "peer_and_peers_ridge_30": _aligned("peer", BOTH, 8, more=(*PATH, "peers"), fit=LOW_RIDGE),
    "alignment_in_groups": _aligned("solution", BOTH, 8),
    "alignment_and_peers_in_groups": _aligned("solution", BOTH, 8, more=(*PATH, "peers")),
}


@dataclass
class Batch:
    """Rollouts with what all critics share; exact values where they are known."""

    rollouts: Rollouts
    mask: Bool[np.ndarray, "B T"]
    segment_ids: Int[np.ndarray, "B T"]
    returns: Float[np.ndarray, "B T"]
    exact: Float[np.ndarray, "B T"] | None

    @classmethod
    def of(cls, rollouts: Rollouts, exact: ExactValues | None) -> "Batch":
        mask = rollouts.completion_mask
        boundaries = find_boundaries(rollouts.token_entropies, mask, PERCENTILE)
        returns = np.where(mask, rollouts.completion_rewards[:, None], 0.0)
        ids = segment_ids_from_boundaries(boundaries, mask)
        return cls(rollouts, mask, ids, returns, exact(rollouts) if exact else None)

    def advantages(self, values: Float[np.ndarray, "B T"], lam: float):
        """At segment starts, of the reward at the end of each completion."""
        rewards = np.zeros(self.mask.shape)
        ends = self.mask.sum(1) - 1
        rewards[np.arange(len(ends)), ends] = self.rollouts.completion_rewards
        found = segment_gae(rewards, values, self.segment_ids, gamma=1.0, lam=lam)
        return found[segment_starts(self.segment_ids)]


def explained_variance(batches: list[Batch], values: list[np.ndarray]) -> float:
    """1 − var(R − V) / var(R) over tokens."""
    returns = np.concatenate([batch.returns[batch.mask] for batch in batches])
    errors = np.concatenate([(b.returns - v)[b.mask] for b, v in zip(batches, values, strict=True)])
    return float(1 - errors.var() / returns.var())


def credit(batches: list[Batch], values: list[np.ndarray]) -> dict:
    """Correlation of segments' advantages with the exact ones at each λ, the critic's own choice of
    λ, and what the measured factor makes of R − V."""
    exact = np.concatenate([batch.advantages(batch.exact, 0.0) for batch in batches])

    def correlation(lam: float) -> float:
        ours = [batch.advantages(v, lam) for batch, v in zip(batches, values, strict=True)]
        return float(np.corrcoef(np.concatenate(ours), exact)[0, 1])

    auto, factors = AutoLambda(), []
    squares = np.zeros(3)
    for batch, v in zip(batches, values, strict=True):
        generations = batch.rollouts.num_generations
        auto.observe(v, batch.returns, batch.segment_ids, batch.mask)
        c = value_coefficients(v, batch.returns, batch.segment_ids, batch.mask, generations)
        factors.append(c.mean())
        rewards = batch.returns[batch.mask]
        plain, scaled = (rewards - x[batch.mask] for x in (v, c[:, None] * v))
        squares += [np.square(x).sum() for x in (rewards, plain, scaled)]
    return {
        "by_lam": {str(lam): correlation(lam) for lam in LAMS},
        "path_share": auto.explained,
        "auto_lam": auto.lam,
        "at_auto_lam": correlation(auto.lam),
        "coefficient": float(np.mean(factors)),
        "squared_advantage": {
            "values": squares[1] / squares[0],
            "scaled_values": squares[2] / squares[0],
        },
    }


def measure(
    critic: Critic, base: Base, learn: list[Batch], held_out: list[Batch], repeats: int
) -> dict:
    """EV on held-out completions after so many seen, over fits on different completions."""
    learned, other = (
        [critic.read(base, batch.rollouts, batch.segment_ids) for batch in batches]
        for batches in (learn, held_out)
    )
    by_seen: dict[int, list[float]] = {}
    credits: dict[int, list[dict]] = {}
    for repeat in range(repeats):
        ridge = Ridge(learned[0].shape[-1], **critic.fit)
        order = np.roll(np.arange(len(learn)), -repeat * len(learn) // repeats)
        for seen, rows in _updates(learn, order):
            batch, x = learn[rows[0]], learned[rows[0]][rows[1]]
            mask = batch.mask[rows[1]]
            ridge.fit(x[mask], batch.returns[rows[1]][mask], UPDATE)
            if seen not in SEEN:
                continue
            values = [_predict(ridge, b, o) for b, o in zip(held_out, other, strict=True)]
            by_seen.setdefault(seen, []).append(explained_variance(held_out, values))
            if seen in DIAGNOSED and held_out[0].exact is not None:
                credits.setdefault(seen, []).append(credit(held_out, values))
    return {
        "num_generations": critic.num_generations,
        "explained_variance": {seen: _summary(found) for seen, found in by_seen.items()},
        "credit": {seen: _mean(found) for seen, found in credits.items()},
    }


def _updates(batches: list[Batch], order):
    """Completions seen so far, and the batch and rows that come next."""
    seen = 0
    for i in order:
        for start in range(0, len(batches[i].mask), UPDATE):
            seen += UPDATE
            yield seen, (i, slice(start, start + UPDATE))


def _predict(ridge: Ridge, batch: Batch, inputs: np.ndarray) -> Float[np.ndarray, "B T"]:
    values = np.zeros(batch.mask.shape)
    values[batch.mask] = ridge.predict(inputs[batch.mask])
    return values


def _summary(found: list[float]) -> dict:
    spread = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return {"mean": float(np.mean(found)), "std": spread, "n": len(found)}


def _mean(found: list[dict]) -> dict:
    """Of equally built dicts of numbers."""
    first = found[0]
    return {
        key: _mean([one[key] for one in found])
        if isinstance(first[key], dict)
        else float(np.mean([one[key] for one in found]))
        for key in first
    }


def known_values(held_out: list[Batch]) -> dict:
    """The two ends of the scale: values 0, and exact ones."""
    if held_out[0].exact is None:
        return {}
    zero = [np.zeros(batch.mask.shape) for batch in held_out]
    exact = [batch.exact for batch in held_out]
    return {
        "none": {"credit": credit(held_out, zero)},
        "exact": {
            "explained_variance": explained_variance(held_out, exact),
            "credit": credit(held_out, exact),
        },
    }


def run(task_name: str, steps: int, seed: int, repeats: int) -> dict:
    """All critics on one task; two thirds of the steps to learn from, one to be tested on."""
    base = Base(lab_task(task_name).base_folder)
    exact = ExactValues(base) if task_name in EXACT_TASKS else None
    results: dict = {"held_out_completions": (steps - 2 * steps // 3) * BATCH}
    for num_generations in (1, 8):
        recorded = record(task_name, num_generations, steps, seed)
        batches = [Batch.of(rollouts, exact) for rollouts in recorded]
        learn, held_out = batches[: 2 * steps // 3], batches[2 * steps // 3 :]
        right = np.mean([batch.rollouts.completion_rewards.mean() for batch in batches])
        segments = np.mean([batch.segment_ids.max(1).mean() + 1 for batch in batches])
        results[f"groups_of_{num_generations}"] = {
            "right": float(right),
            "segments": float(segments),
            **known_values(held_out),
        }
        for name, critic in CRITICS.items():
            if critic.num_generations != num_generations or critic.only_for not in (
                None,
                task_name,
            ):
                continue
            found = measure(critic, base, learn, held_out, repeats)
            results.setdefault("critics", {})[name] = found
            print(task_name, name, _line(found), flush=True)
    return results


def _line(result: dict) -> str:
    ev = {seen: round(one["mean"], 3) for seen, one in result["explained_variance"].items()}
    first = next(iter(result["credit"].values()), None)
    return f"EV {ev}" + (
        f" credit {[round(x, 2) for x in first['by_lam'].values()]} lam {first['auto_lam']:.2f} "
        f"{first['at_auto_lam']:.2f} c {first['coefficient']:.2f} {first['squared_advantage']}"
        if first
        else ""
    )


EXACT_TASKS = (SUM,)
DEFAULT_TASKS = (SUM, "color_cube_habit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULT_TASKS))
    parser.add_argument("--steps", type=int, default=24, help="batches of 64 completions")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=4, help="fits on different completions")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    for name in options.tasks:
        found = run(name, options.steps, options.seed, options.repeats)
        result = {"task": name, "seed": options.seed, "lams": LAMS, **found}
        write_result(f"critic_{name}_{options.steps}", result, options.out)


if __name__ == "__main__":
    main()
