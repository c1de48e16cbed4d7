"""What it costs to read a reference: alignment, its share of a long step, and a hinted pass.

    python benchmarks/sources.py --model models/SmolLM2-135M-Instruct      # a minute or two
    python benchmarks/sources.py --smoke

Completions are solutions of `chain_sum` with a wrong step now and then, as a base model's script
writes them, references those without. The share is that of the step of 64 × 4096 tokens which
benchmarks/scaling.py measured, of a model of one layer: with any other model on the same processor
it is smaller still.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, spread, write_result
from critic_tasks import flawless_solution, quickstart

from spo.config import SPOConfig
from spo.generation.text import completion_texts
from spo.networks.loading import load_policy, load_tokenizer
from spo.networks.network import Network
from spo.precision import cpu_has_bf16
from spo.rollouts import Rollouts
from spo.scoring import score_shared
from spo.segments import find_boundaries, segment_ids_from_boundaries
from spo.values.hint import with_reference
from spo.values.reference import ReferenceInputs
from spo.values.regression import Regression
from spo.values.surprisal import SurprisalInputs

SHORT = {"completions": 64, "tokens": 100, "terms": 14}
LONG = {"completions": 64, "tokens": 4096, "terms": 500}
SMALL = {"completions": 4, "tokens": 40, "terms": 6}
MODEL = ROOT / "assets" / "quickstart"


def solutions(shape: dict[str, int], tokenizer) -> Rollouts:
    """Solutions cut at so many tokens, each with its problem and the one without mistakes."""
    count, length = shape["completions"], shape["tokens"]
    options = dict.fromkeys(("min_terms", "max_terms"), shape["terms"])
    options |= dict.fromkeys(("min_digits", "max_digits"), 1)
    problems = list(quickstart.create_dataset("chain_sum", size=count, seed=1, **options))
    writer = quickstart.Writer(random.Random(1), wrong_step_fraction=0.02, fillers=8)
    ids = [
        tokenizer.encode(quickstart.write_chain_sum(entry, writer))[:length] for entry in problems
    ]
    texts, ends = completion_texts(tokenizer, ids)
    mask = np.arange(length) < np.array([[len(row)] for row in ids])
    noise = np.random.default_rng(1).exponential(size=(2, count, length)).astype(np.float32)
    rewards = np.arange(count, dtype=np.float32) % 2
    return Rollouts(
        step=1,
        num_generations=1,
        prompts=[entry["question"] for entry in problems],
        completions=texts,
        prompt_ids=[tokenizer.encode(entry["question"]) for entry in problems],
        token_ids=_padded(ids, length, 0),
        completion_mask=mask,
        token_ends=_padded(ends, length, -1),
        token_entropies=np.where(mask, noise[0], np.float32(0)),
        token_logprobs_old=np.where(mask, -noise[1], np.float32(0)),
        token_logprobs_ref=None,
        token_values=None,
        token_rewards=np.zeros((count, length), np.float32),
        completion_rewards=rewards,
        rewards_by_function=rewards[:, None],
        reward_names=["right"],
        truncated=np.zeros(count, dtype=bool),
        prompt_index=np.arange(count),
        references=[flawless_solution("chain_sum", entry) for entry in problems],
    )


def _padded(rows: list, length: int, padding: int) -> np.ndarray:
    found = np.full((len(rows), length), padding, dtype=np.int64)
    for row, numbers in enumerate(rows):
        found[row, : len(numbers)] = numbers
    return found


def seconds(what: Callable[[], Any], repetitions: int) -> dict[str, Any]:
    """CPU seconds, after a first time that does not count where there are several."""
    if repetitions > 1:
        what()
    found = []
    for _ in range(repetitions):
        begun = time.process_time()
        what()
        found.append(time.process_time() - begun)
    return spread(found)


def of_source(shape: dict[str, int], tokenizer, repetitions: int) -> dict[str, Any]:
    """Reading a reference alone, and a whole regression on it and the path: values and fit."""
    rollouts = solutions(shape, tokenizer)
    mask = rollouts.completion_mask
    boundaries = find_boundaries(rollouts.token_entropies, mask, 0.2)
    ids = segment_ids_from_boundaries(boundaries, mask)
    reference = ReferenceInputs()
    regression = Regression([SurprisalInputs(), reference])
    returns = np.where(mask, rollouts.completion_rewards[:, None], 0.0)

    def value_and_fit() -> None:
        valued = rollouts.with_values(regression.terms(rollouts, ids))
        regression.fit(valued, returns, mask)

    alignment = seconds(lambda: reference.read(rollouts, ids), repetitions)
    tokens = int(mask.sum())
    return {
        "completions": len(rollouts),
        "tokens": tokens,
        "alignment_seconds": alignment,
        "alignment_ms_per_100_tokens": 1e5 * alignment["median"] / tokens,
        "source_seconds": seconds(value_and_fit, repetitions),
    }


def of_hint(
    shape: dict[str, int], folder: Path, num_generations: int, repetitions: int
) -> dict[str, Any]:
    """A pass over reference, prompt and completion against one without the reference, and how many
    positions each reads; so many completions of a prompt, which are computed once."""
    tokenizer = load_tokenizer(str(folder))
    rollouts = solutions(shape, tokenizer)
    of_prompt = np.arange(len(rollouts)) // num_generations * num_generations
    wording = SPOConfig().value_reference_prompt
    told = [
        tokenizer.encode(with_reference(*pair, wording))
        for pair in zip(rollouts.prompts, rollouts.references, strict=True)
    ]
    model = load_policy(str(folder), dtype="bfloat16" if cpu_has_bf16() else "float32")
    network = Network(model, model.get_output_embeddings())
    network.eval()
    args = SPOConfig(num_generations=num_generations, per_device_train_batch_size=len(rollouts))
    completions = rollouts.ragged_token_ids
    rows = {
        "plain": [rollouts.prompt_ids[i] for i in of_prompt],
        "hinted": [told[i] for i in of_prompt],
    }
    found: dict[str, Any] = {"model": folder.name, "num_generations": num_generations}
    with torch.no_grad():
        for name, prompts in rows.items():
            taken = seconds(
                lambda prompts=prompts: score_shared(
                    network, "logprobs_and_entropies", prompts, completions, args
                ),
                repetitions,
            )
            positions = sum(map(len, prompts[::num_generations])) + sum(map(len, completions))
            found[name] = {"seconds": taken, "positions": positions}
    for key, of in (
        ("passes", lambda part: part["seconds"]["median"]),
        ("positions_ratio", lambda part: part["positions"]),
    ):
        found[key] = of(found["hinted"]) / of(found["plain"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="another one that reads hints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--loaded", action="store_true", help="other work runs beside: say so")
    parser.add_argument("--smoke", action="store_true", help="a little of everything")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(str(MODEL))
    short, long = (SMALL, SMALL) if options.smoke else (SHORT, LONG)
    repetitions = 1 if options.smoke else options.repetitions
    hinted = [(MODEL, {})]
    if options.model is not None:  # larger, and so with fewer completions
        hinted.append((options.model, {"completions": 8}))
    step = json.loads((RESULTS / "scaling.json").read_text())["credit"]
    result = {
        "loaded_machine": options.loaded,
        "short": of_source(short, tokenizer, repetitions),
        "long": of_source(long, tokenizer, 1),
        "step_seconds": step["seconds"]["median"],
        "hint": [
            of_hint(short | fewer, folder, groups, repetitions)
            for folder, fewer in hinted
            for groups in (1, 4)
        ],
    }
    print(json.dumps(result, indent=1))
    write_result("sources", result, options.out)


if __name__ == "__main__":
    main()
