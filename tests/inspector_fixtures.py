"""Runs for the inspector's tests and benchmark, written by the trainer's own writer."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import reference

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.rollouts import Rollouts, save_rollouts, select_rows
from spo.run import index

WORDS = "let the sum of two numbers be x and so then result 12 + 30 = 42 .".split(" ")  # noqa: SIM905
WORDS += ["\ntherefore", "\n\n", "\\frac{a}{b}", "é", "日本", "👍🏽"]


def write_run(folder, steps, prompts=3, generations=4, lengths=(20, 40), critic=True):
    """A run folder with rollouts/step-*.parquet and metrics.jsonl; returns the folder.

    Args:
        lengths: tokens of the shortest and the longest completion.
    """
    for step in steps:
        rng = np.random.default_rng(step)
        rollouts = make_rollouts(rng, step, prompts, generations, lengths, critic)
        path = folder / "rollouts" / f"step-{step:06d}.parquet"
        config = SPOConfig(num_generations=generations)
        reference.save(rollouts, path, config=config, run_id="fixture")
    lines = [
        json.dumps({"step": step, "reward": step / 10, "spo/value_loss": 1 / step})
        for step in range(1, max(steps) + 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def make_rollouts(rng, step, prompts, generations, lengths, critic=True) -> Rollouts:
    """Completions of words; the groups share their first tokens, as real ones do."""
    drawn = rng.integers(lengths[0], lengths[1] + 1, prompts * generations)
    pieces = [["The", " sum"] + [word_of(rng) for _ in range(n - 2)] for n in drawn]
    return from_pieces(rng, step, pieces, generations, critic)


def word_of(rng) -> str:
    word = WORDS[rng.integers(len(WORDS))]
    return word if word.startswith("\n") else f" {word}"


def from_pieces(rng, step, pieces, generations, critic=True, prompts=None) -> Rollouts:
    """Rollouts whose tokens are the given texts, with random numbers around them."""
    rows, most = len(pieces), max((len(row) for row in pieces), default=0)
    vocabulary = {text: i for i, text in enumerate(sorted({t for row in pieces for t in row}))}
    mask = np.arange(most)[None] < np.array([len(row) for row in pieces])[:, None]
    token_ids = np.zeros(mask.shape, dtype=np.int64)
    token_ends = np.full(mask.shape, -1, dtype=np.int64)
    for i, row in enumerate(pieces):
        token_ids[i, : len(row)] = [vocabulary[text] for text in row]
        token_ends[i, : len(row)] = np.cumsum([len(text.encode()) for text in row])

    def floats(low, high):
        return np.where(mask, rng.uniform(low, high, mask.shape), 0).astype(np.float32)

    rewards = rng.integers(0, 2, rows).astype(np.float32)
    token_rewards = np.zeros(mask.shape, dtype=np.float32)
    for i, row in enumerate(pieces):
        if row:
            token_rewards[i, len(row) - 1] = rewards[i]
    logprobs = -floats(0, 3)
    return Rollouts(
        step=step,
        num_generations=generations,
        prompts=prompts or [f"Question {i // generations}: what is 12 + 30?" for i in range(rows)],
        completions=["".join(row) for row in pieces],
        prompt_ids=[[1, 2, 3]] * rows,
        token_ids=token_ids,
        completion_mask=mask,
        token_ends=token_ends,
        token_entropies=floats(0, 2.5) ** 2,
        token_logprobs_old=logprobs,
        token_logprobs_ref=logprobs - floats(-0.3, 0.3),
        token_values=floats(0, 1) if critic else None,
        token_rewards=token_rewards,
        completion_rewards=rewards,
        rewards_by_function=np.stack([rewards, np.zeros(rows, np.float32)], axis=1),
        reward_names=["correct", "format"],
        truncated=np.arange(rows) == 1,
        prompt_index=np.arange(rows) // generations,
    )


PAYLOADS = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "\"><iframe srcdoc='<script>parent.pwned=1</script>'>",
    "</script><script>window.pwned=1</script>",
    "<!--<script>",
    "${window.pwned=1}",
    "`${window.pwned=1}`",
    "{{#each this}}{{constructor}}{{/each}}",
    "{{{value}}} @children",
    "javascript:window.pwned=1",
    "' onmouseover='window.pwned=1",
    "</style><style>*{display:none}</style>",
    "\\frac{a}{b} \\u003cb\\u003e &lt;b&gt; &amp;",
    "a\x01\x1b[31m\x7f\u200b\ufeffb",
    "\u202eevil\u202c \u2066x\u2069",
    "\r\n\t \u2028\u2029\n",
    "👩‍👩‍👧 é e\u0301 日本語 العربية",
    "__proto__",
    "x" * 500,
]
MARKUP_NAME = "<img src=x onerror=window.pwned=1>${pwned=1}"


def write_payloads(root):
    """A run whose name, texts, reward functions, metrics and file names are all hostile."""
    run = root / MARKUP_NAME
    pieces = [PAYLOADS, PAYLOADS[::-1]]
    prompts = ["".join(PAYLOADS)] * 2
    rollouts = from_pieces(np.random.default_rng(0), 1, pieces, 2, prompts=prompts)
    rollouts = dataclasses.replace(rollouts, reward_names=[MARKUP_NAME, "__proto__"])
    for step in (1, 2):
        path = run / "rollouts" / f"step-{step}.parquet"
        reference.save(rollouts, path, config=SPOConfig(num_generations=2), run_id=PAYLOADS[0])
    (path.parent / f"{MARKUP_NAME}.parquet").write_text("broken")
    metrics = [{"step": step, MARKUP_NAME: step, "__proto__": 1} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))


def write_forks(root):
    """Three completions that begin with the same ten tokens; two of them share two more."""
    shared = list("0123456789")
    pieces = [shared + list(rest) for rest in ("abc", "abd", "x")]
    rollouts = from_pieces(np.random.default_rng(0), 1, pieces, 3)
    path = root / "forks" / "rollouts" / "step-1.parquet"
    reference.save(rollouts, path, config=SPOConfig(num_generations=3))


def write_trl(root):
    """What TRL's trainers save with log_completions: texts, rewards, advantages, no tokens."""
    folder = root / "trl" / "completions"
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "step": [5, 5, 5],
            "prompt": ["a", "a", "b"],
            "completion": ["é\n", "", "no"],
            "accuracy_reward": [1.0, None, 0.0],
            "advantage": [0.7, -0.7, 0.0],
        }
    )
    pq.write_table(table, folder / "completions_00005.parquet")
    return folder.parent


def write_odd(root):
    """Steps that cannot be shown as they are: empty, of another schema, damaged inside."""
    folder = root / "odd" / "rollouts"
    config = SPOConfig(num_generations=2)
    rng = np.random.default_rng(0)
    rollouts = from_pieces(rng, 1, [[], ["x", " y"]], 2, critic=False)
    path = reference.save(rollouts, folder / "step-1.parquet", config=config)
    table = pq.read_table(path)
    details = json.loads(table.schema.metadata[b"spo"]) | {"schema_version": 99}
    other = table.replace_schema_metadata({b"spo": json.dumps(details).encode()})
    pq.write_table(other, folder / "step-2.parquet")
    data = bytearray(path.read_bytes())
    data[300:340] = b"\xff" * 40
    (folder / "step-3.parquet").write_bytes(data)
    pq.write_table(pa.table({"x": [1]}), folder / "step-4.parquet")


REFERENCE = "3 + 4 = 7\n7 + 5 = 12 👍"
SOURCES = ("surprisal", "reference", "peers")


def write_known(root):
    """A run whose critic has three sources and reads references, with tools in its completions and
    a column of the data set; steps 1 to 4, with the trainer's index, and evaluations at 1 and 4."""
    config = SPOConfig(num_generations=2, value_reference=["solution", "peer"])
    rollouts_folder = root / "known" / "rollouts"
    for step in range(1, 5):
        rollouts = known_rollouts(step)
        credit = assign_credit(rollouts, config)
        path = rollouts_folder / f"step-{step:06d}.parquet"
        save_rollouts(rollouts, path, credit, config, "known")
        index.append(rollouts, credit, rollouts_folder)
        if step in (1, 4):
            write_evaluation(rollouts, rollouts_folder, step)
    return rollouts_folder


def write_evaluation(rollouts, folder, step):
    """The second completions of the prompts at step 1, the first ones at step 4."""
    chosen = select_rows(rollouts, slice(1 if step == 1 else 0, None, 2))
    chosen = dataclasses.replace(chosen, num_generations=1, token_values=None, values_by_source={})
    config = SPOConfig(num_generations=2)
    credit = assign_credit(chosen, config)
    save_rollouts(chosen, folder / f"eval-step-{step:06d}.parquet", credit, config, "known")
    index.append(chosen, credit, folder, evaluation=True)


def known_rollouts(step):
    """Two prompts with two completions each; a tool answers in the first of each."""
    rng = np.random.default_rng(step)
    right = ["👍 ", "3", " +", " 4", " =", " 7", "\n", "7", " +", " 5", " =", " 12", "\n", "done"]
    wrong = ["3", " +", " 4", " =", " 8", "\n", "8", " +", " 5", " =", " 13"]
    batch = from_pieces(rng, step, [right, wrong, right, wrong], 2)
    mask = batch.completion_mask
    rewards = np.array([1, 0, 1, 0], dtype=np.float32)
    token_rewards = np.zeros(mask.shape, dtype=np.float32)
    token_rewards[np.arange(4), batch.lengths - 1] = rewards
    parts = {name: rng.uniform(-0.2, 0.5, mask.shape) * mask for name in SOURCES}
    parts = {name: array.astype(np.float32) for name, array in parts.items()}
    actions = mask.copy()
    actions[::2, 6:9] = False
    batch = batch.with_values(parts)
    return dataclasses.replace(
        batch,
        completion_rewards=rewards,
        token_rewards=token_rewards,
        action_mask=actions,
        columns={"answer": ["12"] * 4, "solution": [REFERENCE] * 4, "unused": ["no"] * 4},
        references=[REFERENCE, REFERENCE, batch.completions[3], None],
        reference_origins=["solution", "solution", "peer", None],
    )


def write_conversations(root):
    """TRL's completions of a conversational data set: prompt and completion are messages."""
    system = {"role": "system", "content": "Be brief."}
    prompts = [[system, {"role": "user", "content": f"What is 2 + {n}?"}] for n in (2, 2, 3, 3)]
    answers = ["4", "It is 5.", "5", "6"]
    table = pa.table(
        {
            "step": [7] * 4,
            "prompt": prompts,
            "completion": [[{"role": "assistant", "content": text}] for text in answers],
            "accuracy_reward": [1.0, 0.0, 1.0, 0.0],
            "advantage": [0.7, -0.7, 0.7, -0.7],
        }
    )
    folder = root / "completions"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "completions_00007.parquet")
    return folder / "completions_00007.parquet"


def write_split(root):
    """Two completions; in the first a character of four bytes lies in three tokens."""
    rollouts = from_pieces(np.random.default_rng(0), 1, [list("abcd"), ["x"]], 2)
    ends = rollouts.token_ends.copy()
    ends[0] = [1, 2, 3, 5]
    rollouts = dataclasses.replace(rollouts, token_ends=ends, completions=["a👍", "x"])
    path = root / "split" / "rollouts" / "step-1.parquet"
    reference.save(rollouts, path, config=SPOConfig(num_generations=2))
