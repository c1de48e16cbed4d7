"""A dataset name or object → prompts, tokenised once.

Input: a hub name, a local file or folder, `reasoning_gym/<task>`, or a `datasets.Dataset`.
Output: `PreparedPrompts`, the same rows with `prompt_text` and `prompt_ids`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from spo import __version__, problems
from spo.config import SPOConfig
from spo.rewards.logged import RESERVED
from spo.rows import ROW, columns_of, is_stream, plain, require_column, require_dataset, split_of

if TYPE_CHECKING:
    from datasets import IterableDataset

STREAMED_ROWS = 64
"""Prompts of a stream that are tokenised at a time."""

ToolSchemas = dict[str | None, list[dict[str, Any]]]
"""Functions as the chat template is told of them, by the environment whose they are; None: of every
row."""

FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


# --- name → dataset -------------------------------------------------------------------------------


def load_dataset_by_name(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    options: dict | None = None,
    streaming: bool = False,
) -> "Dataset | IterableDataset":
    """The rows behind a name.

    Args:
        name: `reasoning_gym/<task>`; a .json, .jsonl, .csv or .parquet file, a folder of them or
            one written by `Dataset.save_to_disk`; else a name on the hub. Local paths come first.
        options: for reasoning-gym the task's own settings, with `size` and `seed` (0 if not given:
            every process must draw the same problems); else passed to `datasets.load_dataset`.
        streaming: read rows as they are needed instead of all at the start.

    Raises:
        ValueError: nothing can be loaded; one sentence says why.
    """
    if name.startswith(problems.PREFIX):
        if config is not None or split != "train":
            raise ValueError(f"{name} has neither configurations nor splits, only task options.")
        if streaming:
            raise ValueError(f"{name} makes its problems itself; leave streaming out.")
        return problems.load_problems(name.removeprefix(problems.PREFIX), options)
    options = dict(options or {}) | ({"streaming": True} if streaming else {})
    return _load_files_or_hub(name, config, split, options)


def _load_files_or_hub(name: str, config: str | None, split: str, options: dict) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    path = Path(name).expanduser()
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            streaming = options.pop("streaming", False)
            loaded = datasets.load_from_disk(str(path), **options)
            if isinstance(loaded, datasets.DatasetDict):
                loaded = split_of(loaded, split)
            loaded = loaded.to_iterable_dataset() if streaming else loaded
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
    require_dataset(loaded)
    return loaded


# --- dataset → prompts ----------------------------------------------------------------------------


def as_chat(
    dataset: "Dataset | IterableDataset", system_prompt: str
) -> "Dataset | IterableDataset":
    """Column "prompt" as chat messages: `system_prompt`, then the text as the user's message.

    Prompts that are messages already get it in front, unless they begin with a system message.
    """
    dataset = plain(dataset)
    require_column(dataset, "prompt")
    if is_stream(dataset):
        return dataset.map(lambda row: {"prompt": _as_chat(row["prompt"], system_prompt)})
    chats = [_as_chat(prompt, system_prompt) for prompt in dataset["prompt"]]
    with_chats = dataset.add_column("_chat", chats).remove_columns("prompt")
    return with_chats.rename_column("_chat", "prompt")


def _as_chat(prompt: Any, system_prompt: str) -> list[dict[str, Any]]:
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
        return turns
    return [{"role": "system", "content": system_prompt}, *turns]


@dataclass(frozen=True)
class PreparedPrompts:
    """Rows ready for generation.

    Attributes:
        dataset: the given columns, `prompt_text` (what the model sees, chat template applied) and
            `prompt_ids` (its tokens).
        num_dropped, num_truncated: prompts over `max_prompt_length`, by what was done with them.
    """

    dataset: "Dataset | IterableDataset"
    num_dropped: int
    num_truncated: int


def prepare_prompts(
    dataset: Any,
    processing_class,
    *,
    prompt_column: str = "prompt",
    max_prompt_length: int | None = None,
    overlong_prompts: str = "drop",
    chat_template_kwargs: dict[str, Any] | None = None,
    tools: ToolSchemas | None = None,
) -> PreparedPrompts:
    """Apply the chat template, tokenise, and treat over-long prompts as asked.

    A text prompt gets the special tokens its tokenizer puts in front of a text, never those put
    behind it: an end token ends the prompt. Chat messages get exactly the special tokens that the
    chat template writes; it is handed `tools` and `chat_template_kwargs`, over which columns of
    these names win. `overlong_prompts` is "drop", or "truncate_left", which keeps the prompt's end
    and a leading bos.

    Raises:
        ValueError: no rows, column, chat template or valid prompt, or every prompt dropped.
    """
    require_dataset(dataset)
    dataset = plain(dataset)
    _check_prompt_arguments(dataset, prompt_column, max_prompt_length, overlong_prompts)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    is_chat = _is_chat(dataset, prompt_column, tokenizer, wants_chat=bool(tools))
    given = {
        "column": prompt_column,
        "tokenizer": tokenizer,
        "is_chat": is_chat,
        "max_length": max_prompt_length,
        "template_kwargs": chat_template_kwargs or {},
        "tools": tools or {None: []},
        "code_version": __version__,  # datasets caches by the function's name, not its code
    }
    how = {"batched": True, "with_indices": True, "fn_kwargs": given}
    if is_stream(dataset):  # what is too long is passed over when it is read
        tokenized = dataset.map(_tokenize_rows, batch_size=STREAMED_ROWS, **how)
        return PreparedPrompts(tokenized, num_dropped=0, num_truncated=0)
    tokenized = dataset.map(_tokenize_batch, desc="Tokenizing prompts", **how)
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


def prepare_split(
    dataset: Any,
    name: str,
    processing_class: Any,
    args: SPOConfig,
    say: Callable[[str], None],
    tools: ToolSchemas | None = None,
) -> "Dataset | IterableDataset":
    """`prepare_prompts` as `args` describe it; says how many were dropped or cut.

    A held-out stream is read to its end, a training stream needs `max_steps`.
    """
    if dataset is None:
        raise ValueError(f"{name} is missing.")
    trains = name == "train_dataset"
    dataset = split_of(dataset, "train" if trains else "test")
    if is_stream(dataset) and not trains:
        dataset = Dataset.from_list(list(plain(dataset)))
    if is_stream(dataset) and args.max_steps < 1:
        raise ValueError("A stream has no length to take num_train_epochs of: set max_steps.")
    prepared = prepare_prompts(
        dataset,
        processing_class,
        max_prompt_length=args.max_prompt_length,
        overlong_prompts=args.overlong_prompts,
        chat_template_kwargs=args.chat_template_kwargs,
        tools=tools,
    )
    if prepared.num_dropped or prepared.num_truncated:
        say(
            f"{name}: of {len(dataset)} prompts, {prepared.num_dropped} over "
            f"max_prompt_length={args.max_prompt_length} tokens were dropped and "
            f"{prepared.num_truncated} truncated on the left."
        )
    return prepared.dataset


def tokenize_prompts(
    prompts: list[Any],
    columns: dict[str, list],
    tokenizer: Any,
    args: SPOConfig,
    tools: ToolSchemas | None = None,
) -> list[list[int]]:
    """Token ids of other prompts than the data set's, made as `prepare_split` makes those.

    `columns` may hold what a row's chat template is told."""
    found = _tokenize_batch(
        columns | {"prompt": prompts},
        range(len(prompts)),
        column="prompt",
        tokenizer=tokenizer,
        is_chat=not isinstance(prompts[0], str),
        max_length=None,
        template_kwargs=args.chat_template_kwargs or {},
        tools=tools or {None: []},
        code_version=__version__,
    )
    return found["prompt_ids"]


def _check_prompt_arguments(dataset, prompt_column, max_prompt_length, overlong_prompts) -> None:
    if next(iter(dataset), None) is None:
        raise ValueError("The dataset is empty: give one with at least one prompt.")
    columns = columns_of(dataset)
    if overlong_prompts not in ("drop", "truncate_left"):
        raise ValueError(f"overlong_prompts: {overlong_prompts!r} is not drop or truncate_left.")
    if max_prompt_length is not None and max_prompt_length < 1:
        raise ValueError(f"max_prompt_length must be at least 1, not {max_prompt_length}.")
    require_column(dataset, prompt_column)
    for taken in {"prompt_text", "prompt_ids", "_overlong", ROW} & set(columns):
        raise ValueError(f"The dataset has a column {taken!r}, which is added here: rename it.")
    for taken in {*RESERVED} & set(columns):
        raise ValueError(
            f"The dataset has a column {taken!r}, which is a name that reward functions get "
            "something else by: rename it."
        )
    for name, feature in (dataset.features or dict.fromkeys(columns)).items():
        if name in ("image", "images") or "Image(" in repr(feature):
            raise ValueError(
                f"Column {name!r} holds images, which SPO cannot show a model; remove the column "
                "to train on the text alone."
            )


def _is_chat(
    dataset: "Dataset | IterableDataset", column: str, tokenizer: Any, wants_chat: bool
) -> bool:
    """The column holds messages, which the tokenizer has a template for."""
    is_chat = isinstance(next(iter(dataset))[column], list)
    if is_chat and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"Column {column!r} holds chat messages but the tokenizer has no chat template: "
            "use an instruction-tuned model's tokenizer, set tokenizer.chat_template, or give text."
        )
    if wants_chat and not is_chat:
        raise ValueError(
            f"Tools need chat messages; column {column!r} holds text: give lists such as "
            '[{"role": "user", "content": text}].'
        )
    return is_chat


def _tokenize_batch(
    batch, indices, *, column, tokenizer, is_chat, max_length, template_kwargs, tools, code_version
):
    """The added columns of one `Dataset.map` batch; `_overlong` marks what was cut on the left."""
    names = [f"row {index} of column {column!r}" for index in indices]
    given = template_arguments(batch, len(names), template_kwargs, tools)
    prompts = zip(batch[column], names, given, strict=True)
    texts = [render(prompt, tokenizer, name, more) for prompt, name, more in prompts]
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


def _tokenize_rows(batch, indices, **given):
    """`_tokenize_batch` of a stream, whose rows carry their number."""
    return _tokenize_batch(batch, indices, **given) | {ROW: list(indices)}


def template_arguments(
    batch: Mapping[str, Any], num_rows: int, template_kwargs: dict[str, Any], tools: ToolSchemas
) -> list[dict[str, Any]]:
    """What each row's chat template is told besides its messages; the row's own columns win."""
    of_run = [tools[None]] * num_rows if None in tools else _tools_by_environment(batch, tools)
    own_tools = batch["tools"] if "tools" in batch else [None] * num_rows
    of_rows = batch["chat_template_kwargs"] if "chat_template_kwargs" in batch else [{}] * num_rows
    rows = zip(of_run, own_tools, of_rows, strict=True)
    schemas = [
        (_without_none(own) if own else run, _without_none(more or {})) for run, own, more in rows
    ]
    return [template_kwargs | more | ({"tools": t} if t else {}) for t, more in schemas]


def _tools_by_environment(batch: Mapping[str, Any], tools: ToolSchemas) -> list[list]:
    if "environment" not in batch:
        raise ValueError(
            "Several environments need a column 'environment' that names each row's: one of "
            f"{list(tools)}."
        )
    if unknown := sorted({str(name) for name in batch["environment"] if name not in tools}):
        raise ValueError(
            f"Column 'environment' says {unknown[0]!r}; environment_factory has {list(tools)}."
        )
    return [tools[name] for name in batch["environment"]]


def _without_none(value: Any) -> Any:
    """Arrow gives every dict of a column the keys of all, filled with None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def render(prompt: Any, tokenizer, name: str, template_arguments: dict[str, Any]) -> str:
    """The text of a prompt: itself, or chat messages through the tokenizer's template."""
    from jinja2 import TemplateError

    if isinstance(prompt, str):
        return prompt
    messages = [m for m in prompt if isinstance(m, dict)] if isinstance(prompt, list) else []
    messages = _without_none(messages)
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
            **template_arguments,
        )
    except (TemplateError, ValueError) as error:  # the second where a continued message is changed
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"The chat template refused {name}: {reason}.") from error


def _num_added_special_tokens(tokenizer) -> tuple[int, int]:
    """How many tokens `tokenizer` puts before and after a text, e.g. (1, 0) for a bos."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    num_before = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return num_before, len(full) - num_before - len(bare)
