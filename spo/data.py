"""A dataset name or object → prompts, tokenised once, and the order in which steps use them.

Input: a hub name, a local file or folder, `reasoning_gym/<task>`, or a `datasets.Dataset`.
Output: `PreparedPrompts`, the same rows with `prompt_text` and `prompt_ids`, and `PromptBatches`,
which maps a step number to rows.
"""

import dataclasses
import difflib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from spo import __version__

if TYPE_CHECKING:
    from datasets import Dataset

REASONING_GYM_PREFIX = "reasoning_gym/"
FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
HELD_OUT_SEED_OFFSET = 2**30
"""Problem i of a task is drawn from seed + i alone, so a held-out seed must lie far away."""


# --- name → dataset -------------------------------------------------------------------------------


def load_dataset_by_name(
    name: str, *, config: str | None = None, split: str = "train", options: dict | None = None
) -> "Dataset":
    """The rows behind a name.

    Args:
        name: `reasoning_gym/<task>`; a .json, .jsonl, .csv or .parquet file, a folder of them or
            one written by `Dataset.save_to_disk`; else a name on the hub. Local paths come first.
        options: for reasoning-gym the task's own settings, with `size` and `seed` (0 if not given:
            every process must draw the same problems); else passed to `datasets.load_dataset`.

    Raises:
        ValueError: nothing can be loaded; one sentence says why.
    """
    if name.startswith(REASONING_GYM_PREFIX):
        if config is not None or split != "train":
            raise ValueError(f"{name} has neither configurations nor splits, only task options.")
        task = name.removeprefix(REASONING_GYM_PREFIX)
        options = {**(options or {}), "seed": (options or {}).get("seed") or 0}
        return _problems_to_dataset(task, options, list(create_reasoning_gym_task(task, options)))
    return _load_files_or_hub(name, config, split, options or {})


def _load_files_or_hub(name: str, config: str | None, split: str, options: dict) -> "Dataset":
    import datasets
    from datasets.exceptions import DatasetsError

    path = Path(name).expanduser()
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(path), **options)
            loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        elif path.suffix in FILE_BUILDERS and not path.is_dir():
            builder = FILE_BUILDERS[path.suffix]
            loaded = datasets.load_dataset(builder, data_files=str(path), split=split, **options)
        else:
            source = str(path) if path.exists() else name
            loaded = datasets.load_dataset(source, config, split=split, **options)
    # Everything load_dataset is known to raise for a name, an option or a file it cannot use.
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, DatasetsError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or repr(cause)).splitlines()[0].rstrip(".")
        raise ValueError(
            f"Could not load the dataset {name!r} (config {config!r}, split {split!r}): {reason}; "
            "name a reachable hub dataset, a local file or folder, or reasoning_gym/<task>."
        ) from error
    _require_dataset(loaded)
    return loaded


def _require_dataset(dataset: Any) -> None:
    import datasets

    if isinstance(dataset, datasets.Dataset):
        return
    raise ValueError(
        f"Prompts must come as a datasets.Dataset, not {type(dataset).__name__}: pick one split of "
        "a DatasetDict, load without streaming, or build one with Dataset.from_list."
    )


# --- reasoning-gym --------------------------------------------------------------------------------


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
    task = task.removeprefix(REASONING_GYM_PREFIX)
    options = {"size": 500, **(options or {}), "seed": (options or {}).get("seed") or 0}
    eval_options = {**options, "size": eval_size, "seed": options["seed"] + HELD_OUT_SEED_OFFSET}
    eval_set = load_dataset_by_name(REASONING_GYM_PREFIX + task, options=eval_options)
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


# --- dataset → prompts ----------------------------------------------------------------------------


def as_chat(dataset: "Dataset", system_prompt: str) -> "Dataset":
    """Column "prompt" as chat messages: `system_prompt`, then the text as the user's message.

    Prompts that are messages already get it in front, unless they begin with a system message.
    """
    require_column(dataset, "prompt")
    chats = []
    for prompt in dataset["prompt"]:
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        if not (turns and isinstance(turns[0], dict) and turns[0].get("role") == "system"):
            turns = [{"role": "system", "content": system_prompt}, *turns]
        chats.append(turns)
    with_chats = dataset.add_column("_chat", chats).remove_columns("prompt")
    return with_chats.rename_column("_chat", "prompt")


@dataclass(frozen=True)
class PreparedPrompts:
    """Rows ready for generation.

    Attributes:
        dataset: the given columns, `prompt_text` (what the model sees, chat template applied) and
            `prompt_ids` (its tokens).
        num_dropped, num_truncated: prompts over `max_prompt_length`, by what was done with them.
    """

    dataset: "Dataset"
    num_dropped: int
    num_truncated: int


def prepare_prompts(
    dataset: "Dataset",
    processing_class,
    *,
    prompt_column: str = "prompt",
    max_prompt_length: int | None = None,
    overlong_prompts: str = "drop",
) -> PreparedPrompts:
    """Apply the chat template, tokenise, and treat over-long prompts as asked.

    A text prompt gets the special tokens its tokenizer puts in front of a text, never those put
    behind it: an end token ends the prompt. Chat messages get exactly the special tokens that the
    chat template writes. `overlong_prompts` is "drop", or "truncate_left", which keeps the prompt's
    end and a leading bos.

    Raises:
        ValueError: no rows, column, chat template or valid prompt, or every prompt dropped.
    """
    _check_prompt_arguments(dataset, prompt_column, max_prompt_length, overlong_prompts)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    is_chat = isinstance(dataset[0][prompt_column], list)
    if is_chat and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"Column {prompt_column!r} holds chat messages but the tokenizer has no chat template: "
            "use an instruction-tuned model's tokenizer, set tokenizer.chat_template, or give text."
        )
    tokenized = dataset.map(
        _tokenize_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={
            "column": prompt_column,
            "tokenizer": tokenizer,
            "is_chat": is_chat,
            "max_length": max_prompt_length,
            "code_version": __version__,  # datasets caches by the function's name, not its code
        },
        desc="Tokenizing prompts",
    )
    overlong = np.asarray(tokenized.with_format("numpy")["_overlong"], dtype=bool)
    tokenized = tokenized.remove_columns("_overlong")
    if overlong_prompts == "truncate_left":
        return PreparedPrompts(tokenized, num_dropped=0, num_truncated=int(overlong.sum()))
    if overlong.all():
        raise ValueError(
            f"All {len(overlong)} prompts are longer than max_prompt_length={max_prompt_length} "
            "tokens: raise it or set overlong_prompts='truncate_left'."
        )
    if overlong.any():
        tokenized = tokenized.select(np.flatnonzero(~overlong))
    return PreparedPrompts(tokenized, num_dropped=int(overlong.sum()), num_truncated=0)


def _check_prompt_arguments(dataset, prompt_column, max_prompt_length, overlong_prompts) -> None:
    _require_dataset(dataset)
    if len(dataset) == 0:
        raise ValueError("The dataset is empty: give one with at least one prompt.")
    columns = dataset.column_names
    if overlong_prompts not in ("drop", "truncate_left"):
        raise ValueError(f"overlong_prompts: {overlong_prompts!r} is not drop or truncate_left.")
    if max_prompt_length is not None and max_prompt_length < 1:
        raise ValueError(f"max_prompt_length must be at least 1, not {max_prompt_length}.")
    require_column(dataset, prompt_column)
    for taken in {"prompt_text", "prompt_ids"} & set(columns):
        raise ValueError(f"The dataset has a column {taken!r}, which is added here: rename it.")


def require_column(dataset: "Dataset", column: str) -> None:
    """ValueError where a data set has no such column."""
    columns = dataset.column_names
    if column not in columns:
        hint = nearest_hint(column, columns)
        raise ValueError(f"The dataset has no column {column!r}{hint}; it has {columns}.")


def _tokenize_batch(batch, indices, *, column, tokenizer, is_chat, max_length, code_version):
    """The added columns of one `Dataset.map` batch; `_overlong` marks what was cut on the left."""
    names = [f"row {index} of column {column!r}" for index in indices]
    texts = [_render(p, tokenizer, name) for p, name in zip(batch[column], names, strict=True)]
    num_before, num_after = (0, 0) if is_chat else _num_added_special_tokens(tokenizer)
    rows = tokenizer(texts, add_special_tokens=not is_chat, verbose=False)["input_ids"]
    rows = [list(ids[: len(ids) - num_after]) for ids in rows]
    for name, ids in zip(names, rows, strict=True):
        if not ids:
            raise ValueError(f"The prompt in {name} is empty (0 tokens): remove that row.")
    overlong = [max_length is not None and len(ids) > max_length for ids in rows]
    for i in np.flatnonzero(overlong):
        keep_bos = rows[i][0] == tokenizer.bos_token_id and max_length > 1
        tail = rows[i][-(max_length - keep_bos) :]
        rows[i] = rows[i][:keep_bos] + tail
        # A bos that the tokenizer adds by itself is in no other row's text either.
        texts[i] = tokenizer.decode(tail if num_before else rows[i])
    return {"prompt_text": texts, "prompt_ids": rows, "_overlong": overlong}


def _render(prompt: Any, tokenizer, name: str) -> str:
    """The text of a prompt: itself, or chat messages through the tokenizer's template."""
    from jinja2 import TemplateError

    if isinstance(prompt, str):
        return prompt
    messages = [m for m in prompt if isinstance(m, dict)] if isinstance(prompt, list) else []
    # Arrow fills the keys that only other messages have with None.
    messages = [{key: m[key] for key in m if m[key] is not None} for m in messages]
    keys_are_texts = (isinstance(m.get(k), str) for m in messages for k in ("role", "content"))
    if not messages or not all(keys_are_texts):
        raise ValueError(
            f"The prompt in {name} is {str(prompt)[:60]!r} ({type(prompt).__name__}): it must be a "
            "text or a non-empty list of chat messages with a text 'role' and 'content'."
        )
    # As in TRL: a prompt that ends with the assistant's words is continued, not answered.
    is_continued = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not is_continued,
            continue_final_message=is_continued,
        )
    except TemplateError as error:
        raise ValueError(f"The chat template refused {name}: {error}.") from error


def _num_added_special_tokens(tokenizer) -> tuple[int, int]:
    """How many tokens `tokenizer` puts before and after a text, e.g. (1, 0) for a bos."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    num_before = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return num_before, len(full) - num_before - len(bare)


def nearest_hint(name: str, candidates) -> str:
    """For an error sentence: the most similar valid name, or nothing.

    >>> nearest_hint("promt", ["answer", "prompt"])
    " (did you mean 'prompt'?)"
    """
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


# --- step number → rows ---------------------------------------------------------------------------


def prompt_order(
    num_prompts: int, epoch: int, seed: int, shuffle: bool = True
) -> Int[np.ndarray, " num_prompts"]:
    """The order of one epoch, a permutation that depends on (seed, epoch) only."""
    if not shuffle:
        return np.arange(num_prompts)
    return np.random.default_rng([seed, epoch]).permutation(num_prompts)


@dataclass(frozen=True)
class PromptBatches:
    """Which rows step t uses, computed from t alone, so a resumed run needs no saved position.

    Step t takes positions t·P … t·P + P − 1 of the endless concatenation of epoch orders: the last
    batch of an epoch is completed with the first rows of the next, and within an epoch every row
    comes exactly once. P may exceed `num_prompts`.

    >>> batches = PromptBatches(num_prompts=3, prompts_per_step=2, seed=0, shuffle=False)
    >>> [batches.indices(step).tolist() for step in range(3)]
    [[0, 1], [2, 0], [1, 2]]
    >>> batches.epoch(3)
    2.0
    """

    num_prompts: int
    prompts_per_step: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self):
        if min(self.num_prompts, self.prompts_per_step) < 1:
            raise ValueError(f"num_prompts and prompts_per_step must be at least 1: {self}.")

    def indices(self, step: int) -> Int[np.ndarray, " P"]:
        """The rows of `step` (0, 1, 2, …), in order."""
        positions = step * self.prompts_per_step + np.arange(self.prompts_per_step)
        epochs, offsets = np.divmod(positions, self.num_prompts)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            order = prompt_order(self.num_prompts, int(epoch), self.seed, self.shuffle)
            rows[epochs == epoch] = order[offsets[epochs == epoch]]
        return rows

    def epoch(self, step: int) -> float:
        """Passes over the data completed before `step`."""
        return step * self.prompts_per_step / self.num_prompts
