"""What grows with the number of cards in a step: the work on the completions of all of them.

    python benchmarks/cards.py
    python benchmarks/cards.py --smoke        # seconds

Every process unpacks the completions of all, fits the critic's regression to them and assigns their
credit, and process 0 writes the Parquet file, so these cost a step more the more cards there are,
while sampling, scoring and the update of a card stay as they are. Measured is the processor time of
a token, the least of several repetitions; from it follows the number of cards at which each takes
2 % of a step, for cards that sample `--completions` × `--length` tokens in steps of `--seconds`,
which is an assumption.
"""

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.rollouts import Rollouts, save_rollouts, stack_rows
from spo.run import index
from spo.scoring import packed
from spo.segments import segment
from spo.values.surprisal import path_regression

LIMIT = 0.02
"""Of a step: what may be lost before it is worth doing something about."""


def records(completions: int, length: int) -> list[dict[str, Any]]:
    """What `score` knows of completions of random tokens, four letters each."""
    rng = np.random.default_rng(0)
    return [
        {
            "prompt_index": row // 8,
            "prompt": "p" * 300,
            "completion": "abcd" * length,
            "token_ends": list(range(4, 4 * length + 1, 4)),
            "token_rewards": [0.0] * length,
            "reward": float(row % 2),
            "rewards_by_function": [float(row % 2)],
            "prompt_ids": list(range(100)),
            "token_ids": rng.integers(50_000, size=length).tolist(),
            "truncated": False,
            "token_logprobs_old": (-rng.random(length)).tolist(),
            "token_entropies": rng.random(length).tolist(),
        }
        for row in range(completions)
    ]


def least_seconds(work: Callable[[], Any], repetitions: int) -> float:
    """Of processor time: other programs on the machine do not count."""
    found = []
    for _ in range(repetitions):
        before = time.process_time()
        work()
        found.append(time.process_time() - before)
    return min(found)


def measure(completions: int, length: int, repetitions: int) -> dict[str, float]:
    """Seconds for a batch of this size, by what is done."""
    args = SPOConfig(use_value_network=False)
    rows = records(completions, length)
    sent = pickle.dumps(list(map(packed, rows)))

    def received() -> Rollouts:
        return stack_rows(pickle.loads(sent), step=1, num_generations=8, reward_names=["reward"])

    rollouts = received()
    segment_ids = segment(rollouts, args)
    credit = assign_credit(rollouts, args, segment_ids)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-000001.parquet"

        def write() -> None:
            save_rollouts(rollouts, path, credit, args, "cards")
            index.append(rollouts, credit, path.parent)

        def regress() -> None:
            regression = path_regression()
            values = regression.predict(rollouts, segment_ids)
            regression.fit(rollouts, values, rollouts.completion_mask)

        work = {
            "pack": lambda: pickle.dumps(list(map(packed, rows))),
            "unpack": received,
            "credit": lambda: assign_credit(rollouts, args, segment(rollouts, args)),
            "regression": regress,
            "write": write,
        }
        seconds = {name: least_seconds(act, repetitions) for name, act in work.items()}
    return {"bytes": float(len(sent)), **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--completions", type=int, default=32, help="of a card and step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a completion")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a card's step, assumed")
    parser.add_argument("--batch", type=int, default=512, help="completions measured")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="a little of everything")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    batch = 16 if options.smoke else options.batch
    found = measure(batch, options.length, 1 if options.smoke else options.repetitions)
    tokens = batch * options.length
    of_card = options.completions * options.length
    per_token = {name: amount / tokens for name, amount in found.items()}
    rows = {
        name: {
            "microseconds_per_token": round(1e6 * per_token[name], 4),
            "share": {n: per_token[name] * of_card * n / options.seconds for n in (8, 64, 512)},
            "cards_at_limit": int(LIMIT * options.seconds / (per_token[name] * of_card)),
        }
        for name in ("unpack", "credit", "regression", "write")
    }
    result = {
        "completions": options.completions,
        "length": options.length,
        "assumed_seconds": options.seconds,
        "limit": LIMIT,
        "bytes_per_token": round(per_token["bytes"], 2),
        "pack_microseconds_per_token": round(1e6 * per_token["pack"], 4),
        "work": rows,
    }
    write_result("cards", result, options.out)


if __name__ == "__main__":
    main()
