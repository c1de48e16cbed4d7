"""reasoning-gym tasks -> prompts with what their verifiers need, as datasets of text columns."""

import dataclasses
import itertools
import json
from typing import TYPE_CHECKING, Any

from spo.options import nearest_hint

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "reasoning_gym/"
HELD_OUT_SEED_OFFSET = 2**30
"""Problem i of a task is drawn from seed + i alone, so a held-out seed must lie far away."""


def load_problems(task: str, options: dict | None) -> "Dataset":
    """All problems of one task; every process draws the same ones, from seed 0 if none is given."""
    options = {**(options or {}), "seed": (options or {}).get("seed") or 0}
    return _problems_to_dataset(task, options, list(create_reasoning_gym_task(task, options)))


def create_reasoning_gym_task(task: str, options: dict):
    """The library's own problem generator and verifier for `task`."""
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import DATASETS, create_dataset

    if task not in DATASETS:
        hint = nearest_hint(task, DATASETS)
        raise ValueError(f"reasoning-gym has {len(DATASETS)} tasks but no {task!r}{hint}.")
    known = [field.name for field in dataclasses.fields(DATASETS[task][1])]
    for option in options:
        if option not in known:
            hint = nearest_hint(option, known)
            raise ValueError(f"{task} has no option {option!r}{hint}; it has {', '.join(known)}.")
    try:
        if task == "composite":  # its parts come as plain dicts from a command line or YAML file
            options = {
                **options,
                "datasets": [DatasetSpec(**o) for o in options.get("datasets", [])],
            }
        return create_dataset(task, **options)
    except (AssertionError, TypeError, ValueError) as error:  # its configs validate with assert
        raise ValueError(f"reasoning-gym refused {options} for {task!r}: {error}.") from error


def load_reasoning_gym_splits(
    task: str, options: dict | None, eval_size: int
) -> tuple["Dataset", "Dataset"]:
    """Training and held-out problems of one task that share no question.

    The held-out problems come from a distant seed. A training problem whose question is held out is
    passed over and the next one drawn, so the training set keeps its `size` (option, default 500).
    """
    task = task.removeprefix(PREFIX)
    options = {"size": 500, **(options or {}), "seed": (options or {}).get("seed") or 0}
    eval_options = {**options, "size": eval_size, "seed": options["seed"] + HELD_OUT_SEED_OFFSET}
    eval_set = load_problems(task, eval_options)
    held_out = set(eval_set["prompt"])
    num_candidates = 10 * options["size"]
    candidates = create_reasoning_gym_task(task, {**options, "size": num_candidates})
    unseen = (problem for problem in candidates if problem["question"] not in held_out)
    problems = list(itertools.islice(unseen, options["size"]))
    if len(problems) < options["size"]:
        raise ValueError(
            f"Only {len(problems)} of {num_candidates} {task} problems are not also held out, "
            f"{options['size']} were asked for: hold out fewer, or widen the task's options."
        )
    return _problems_to_dataset(task, options, problems), eval_set


def _problems_to_dataset(task: str, options: dict, problems: list[dict]) -> "Dataset":
    """One row a problem; `task`, `task_options` and `entry` are what its verifier needs."""
    from datasets import Dataset, Features, Value

    columns = {
        "prompt": [problem["question"] for problem in problems],
        "answer": [problem["answer"] for problem in problems],
        "entry": [encode_entry(problem) for problem in problems],
        "task": [task] * len(problems),
        "task_options": [json.dumps(options, sort_keys=True)] * len(problems),
    }
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Value("string"))))


def encode_entry(entry: dict) -> str:
    """A reasoning-gym entry as JSON that `decode_entry` turns back into the same Python objects.

    Plain JSON makes lists of tuples, and the verifiers of `arc_agi` and `rearc` compare tuples: a
    right answer scored 0.05. Tuples and dicts with other than text keys are therefore tagged.

    >>> encode_entry({"board": (1, 2)})
    '{"board": {"__tuple__": [1, 2]}}'
    >>> decode_entry(encode_entry({"board": (1, 2), "colours": {3: "red"}}))
    {'board': (1, 2), 'colours': {3: 'red'}}
    """
    return json.dumps(_tag(entry))


def decode_entry(text: str) -> dict:
    """The inverse of `encode_entry`."""
    return json.loads(text, object_hook=_untag)


def _tag(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_tag(item) for item in value]}
    if isinstance(value, list):
        return [_tag(item) for item in value]
    if not isinstance(value, dict):
        return value
    if all(isinstance(key, str) for key in value):
        return {key: _tag(item) for key, item in value.items()}
    return {"__items__": [[_tag(key), _tag(item)] for key, item in value.items()]}


def _untag(mapping: dict) -> Any:
    if mapping.keys() == {"__tuple__"}:
        return tuple(mapping["__tuple__"])
    if mapping.keys() == {"__items__"}:
        return dict(mapping["__items__"])
    return mapping
