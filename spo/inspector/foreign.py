"""Files that hold texts but no tokens, such as TRL's completions_*.parquet -> `Step`.

Every completion becomes one pseudo-token that spans its text and carries the saved advantage.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spo.columns import is_text
from spo.inspector.bounded import MESSAGE, TEXT, bounded_table
from spo.inspector.step import Step
from spo.inspector.turns import as_text
from spo.rollouts import Credit, Rollouts

MISSING = (
    "token ids and text offsets",
    "entropies",
    "log-probs",
    "values",
    "segments",
    "token rewards",
    "training configuration",
)
POSITIONS = ("step", "advantage", "prompt_index", "completion_index")


def read_reduced(file: pq.ParquetFile, name: str, lacking: str = "") -> Step:
    """A group is a run of rows with one prompt. All numeric columns but POSITIONS count as reward
    functions; the reward shown is their sum, as the file does not name the weights.

    Raises:
        ValueError: one sentence saying why the file cannot be shown.
    """
    arrow_schema = file.schema_arrow
    if not set(TEXT) <= set(arrow_schema.names):
        raise ValueError(f"{name} holds no rollouts: it has no prompt and completion columns.")
    for column in TEXT:
        check_kind(arrow_schema.field(column).type, column, name)
    numeric = [
        field.name
        for field in arrow_schema
        if (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
        and field.name not in POSITIONS
    ]
    has_advantage = "advantage" in arrow_schema.names
    wanted = [*TEXT, *numeric, *(["advantage"] if has_advantage else [])]
    table = bounded_table(file, wanted, name)
    prompts = texts(table.column("prompt"), is_prompt=True)
    completions = texts(table.column("completion"), is_prompt=False)

    def numbers(column):
        return table.column(column).cast(pa.float32(), safe=False).fill_null(np.nan).to_numpy()

    names = [column for column in numeric if column != "reward"]
    by_function = np.array([numbers(column) for column in names], dtype=np.float32)
    by_function = by_function.reshape(len(names), len(prompts)).T
    reward = numbers("reward") if "reward" in numeric else by_function.sum(1)
    advantage = numbers("advantage") if has_advantage else np.zeros(len(prompts), np.float32)
    rollouts = text_rollouts(prompts, completions, reward, by_function, names)
    credit = Credit(rollouts.token_ids, np.nan_to_num(advantage)[:, None], None)
    missing = [*([lacking] if lacking else []), *MISSING]
    missing += [] if has_advantage else ["advantages"]
    return Step(rollouts, credit, None, "", tuple(missing))


def check_kind(kind: pa.DataType, column: str, name: str) -> None:
    """Raises ValueError unless a column is text or lists of messages."""
    if is_text(kind):
        return
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = kind.value_type
        if pa.types.is_struct(item):
            fields = {field.name: field.type for field in item}
            if all(part in fields and is_text(fields[part]) for part in MESSAGE):
                return
    raise ValueError(f"{name}: its column {column} is neither text nor a list of messages.")


def texts(column: pa.ChunkedArray, is_prompt: bool) -> list[str]:
    """The texts; a list of messages becomes one text (see turns.py)."""
    if is_text(column.type):
        return [text or "" for text in column.cast(pa.string()).to_pylist()]
    return [as_text(messages or [], is_prompt) for messages in column.to_pylist()]


def text_rollouts(prompts, completions, reward, by_function, names) -> Rollouts:
    """Texts -> rollouts whose completions are one pseudo-token each."""
    one = np.zeros((len(prompts), 1), dtype=np.float32)
    sizes = [len(text.encode()) for text in completions]
    starts = [i for i, text in enumerate(prompts) if i == 0 or text != prompts[i - 1]]
    counts = np.diff([*starts, len(prompts)])
    even = len(set(counts.tolist())) == 1
    return Rollouts(
        step=0,
        num_generations=int(counts[0]) if even else 1,
        prompts=prompts,
        completions=completions,
        prompt_ids=[[] for _ in prompts],
        token_ids=one.astype(np.int64),
        completion_mask=one == 0,
        token_ends=np.array(sizes, dtype=np.int64).reshape(-1, 1),
        token_entropies=one,
        token_logprobs_old=one,
        token_logprobs_ref=None,
        token_values=None,
        token_rewards=one,
        completion_rewards=np.asarray(reward, dtype=np.float32),
        rewards_by_function=by_function,
        reward_names=names,
        truncated=one[:, 0] == 1,
        prompt_index=np.searchsorted(starts, np.arange(len(prompts)), side="right") - 1,
    )
