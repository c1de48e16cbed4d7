"""A base model that is not trained -> rollouts to try critics on, and their exact values.

Recorded through SPOTrainer at a learning rate of 0, kept below runs/critic/.
"""

import json
import math
import re
import tempfile
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from common import ROOT
from critic_tasks import WORDINGS, flawless_solution
from exact_critic import progress
from jaxtyping import Float, Int
from learning import make_base
from learning_tasks import TASKS

from spo.config import SPOConfig
from spo.rollouts import Rollouts, load_rollouts
from spo.segments import segment_starts
from spo.values.hint import HintInputs, with_reference
from spo.values.rest import ScoredReference

BATCH = 64
"""Completions of a step."""
OPENER = "so "


@dataclass(frozen=True)
class LabTask:
    """A reasoning-gym task and the folder of a base that has a habit in it."""

    dataset: str
    options: dict[str, int]
    base_folder: Path
    max_completion_length: int


def lab_task(name: str) -> LabTask:
    """By name; its base model is made where it is missing."""
    task = TASKS[name]
    make_base(name)
    length = task.settings["max_completion_length"]
    return LabTask(task.dataset, task.options, task.base_folder, length)


def problems(task: LabTask, size: int, seed: int):
    from spo.data import load_dataset_by_name

    options = task.options | {"size": size, "seed": seed}
    return load_dataset_by_name(f"reasoning_gym/{task.dataset}", options=options)


def record(name: str, num_generations: int, steps: int, seed: int) -> list[Rollouts]:
    """`steps` batches of 64 completions of the base, each problem seen once."""
    task = lab_task(name)
    dataset = problems(task, steps * BATCH // num_generations, seed)
    folder = ROOT / "runs" / "critic" / f"{name}-{num_generations}-{steps}-seed{seed}"
    if not folder.exists():
        _run(task, dataset, num_generations, steps, seed, folder)
    files = sorted(folder.glob("step-*.parquet"))
    return [_with_columns(load_rollouts(file).rollouts, dataset) for file in files]


def _run(task: LabTask, dataset, num_generations: int, steps: int, seed: int, kept: Path) -> None:
    from spo import SPOConfig, SPOTrainer

    warnings.filterwarnings("ignore")
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        args = SPOConfig(
            output_dir=folder,
            num_generations=num_generations,
            per_device_train_batch_size=BATCH,
            max_completion_length=task.max_completion_length,
            max_steps=steps,
            learning_rate=0.0,
            entropy_percentile=0.2,
            value_features="surprisal",
            save_rollouts_steps=1,
            log_completions=False,
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
        )
        trainer = SPOTrainer(str(task.base_folder), "reasoning_gym", args, train_dataset=dataset)
        trainer.train()
        kept.parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / "rollouts").rename(kept)


def _with_columns(rollouts: Rollouts, dataset) -> Rollouts:
    """Each completion's problem, and its solution by one who makes no mistakes; reward 1 if right,
    else 0, as the exact values have it."""
    rows = dataset.select(rollouts.prompt_index)
    solutions = [
        flawless_solution(task, json.loads(entry))
        for task, entry in zip(rows["task"], rows["entry"], strict=True)
    ]
    columns = {"answer": list(rows["answer"])}
    columns |= {name: [*map(write, solutions)] for name, write in WORDINGS.items()}
    right = (rollouts.completion_rewards >= 1).astype(np.float32)
    return replace(rollouts, columns=columns, completion_rewards=right)


# --- under the base -------------------------------------------------------------------------------


class Base:
    """The policy that made the rollouts: log-probs of texts behind their prompts."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def logprobs(self, prompt_ids: list[int], ids: list[int]) -> Float[np.ndarray, "S V"]:
        """Of all tokens, before each of `ids`."""
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt_ids, *ids]])).logits[0]
        return logits[len(prompt_ids) - 1 : -1].double().log_softmax(-1).numpy()

    def score(self, rollouts: Rollouts) -> list[ScoredReference | None]:
        """`RestInputs`' score: each reference under the base, a pass each."""
        return [
            None if text is None else self._score(prompt_ids, text)
            for prompt_ids, text in zip(rollouts.prompt_ids, rollouts.references, strict=True)
        ]

    @cached_property
    def hint(self) -> HintInputs:
        """With the default wording."""
        wording = SPOConfig().value_reference_prompt

        def tokenize(rollouts: Rollouts) -> list[list[int]]:
            pairs = zip(rollouts.prompts, rollouts.references, strict=True)
            return [self.tokenizer.encode(with_reference(*pair, wording)) for pair in pairs]

        return HintInputs(tokenize, self.passes)

    def passes(self, prompt_ids: list[list[int]], token_ids: list[list[int]]):
        """Log-probs and entropies of each row's completion, ragged; a pass each."""
        logprobs, entropies = [], []
        for prompt, ids in zip(prompt_ids, token_ids, strict=True):
            found = self.logprobs(prompt, ids)
            logprobs.append(found[np.arange(len(ids)), ids])
            entropies.append(-(np.exp(found) * found).sum(-1))
        return logprobs, entropies

    @cached_property
    def likelihood(self) -> "AnswerLikelihood":
        return AnswerLikelihood(self)

    def _score(self, prompt_ids: list[int], text: str) -> ScoredReference:
        ids = self.tokenizer.encode(text)
        logprobs = self.logprobs(prompt_ids, ids)
        ends = np.cumsum([len(self.tokenizer.decode([token])) for token in ids])
        entropies = -(np.exp(logprobs) * logprobs).sum(-1)
        return ScoredReference(ends, logprobs[np.arange(len(ids)), ids], entropies)


class AnswerLikelihood:
    """log π(answer | prompt, prefix, opener) at the segment start that came last, and how far it
    has risen since the first, both in units of 4 nats; a pass per segment."""

    name, width = "likelihood", 2
    OPENER = "\n<answer>"

    def __init__(self, base: Base):
        self.base = base

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T 2"]:
        found = np.zeros((*segment_ids.shape, 2))
        for row, answer in enumerate(rollouts.columns["answer"]):
            starts = np.flatnonzero(segment_starts(segment_ids[row : row + 1])[0])
            ids = rollouts.token_ids[row]
            prefixes = [[*rollouts.prompt_ids[row], *ids[:t]] for t in starts]
            at_starts = self._likelihoods(prefixes, f"{answer}</answer>") / 4
            of_token = np.searchsorted(starts, np.arange(len(ids)), side="right") - 1
            found[row, :, 0] = at_starts[of_token]
            found[row, :, 1] = at_starts[of_token] - at_starts[0]
        return np.where(rollouts.completion_mask[..., None], found, 0.0)

    def _likelihoods(self, prefixes: list[list[int]], answer: str) -> Float[np.ndarray, " N"]:
        """Each at least −20 nats."""
        import torch

        opener, ids = (self.base.tokenizer.encode(text) for text in (self.OPENER, answer))
        rows = [torch.tensor([*prefix, *opener, *ids]) for prefix in prefixes]
        with torch.no_grad():  # padded on the right: causal attention never looks there
            logits = self.base.model(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)).logits
        sums = []
        for row, prefix in zip(logits, prefixes, strict=True):
            begin = len(prefix) + len(opener) - 1
            logprobs = row[begin : begin + len(ids)].double().log_softmax(-1).numpy()
            sums.append(logprobs[np.arange(len(ids)), ids].sum())
        return np.maximum(sums, -20.0)


# --- exact values ---------------------------------------------------------------------------------


class ExactValues:
    """V(s_t) of a base whose every mistake is final and every right line depends on the one before.

    After a wrong character the value is 0. On the right path it is the probability that the base
    writes all that is left without a mistake: a product over the characters of the right lines,
    each under the base's own policy, in one pass over the right solution. The opener before a line
    is a free choice; all of them are taken to be followed alike.
    """

    def __init__(self, base: Base):
        self.base, self.tokenizer = base, base.tokenizer

    def __call__(self, rollouts: Rollouts) -> Float[np.ndarray, "B T"]:
        values = np.zeros(rollouts.completion_mask.shape)
        for row in range(len(rollouts)):
            values[row] = self._of_row(rollouts, row)
        return np.where(rollouts.completion_mask, values, 0.0)

    def _of_row(self, rollouts: Rollouts, row: int) -> Float[np.ndarray, " T"]:
        right = rollouts.columns["solution"][row].split("\n")
        starts = np.concatenate([[0], rollouts.token_ends[row, :-1]])
        logprobs = self._right_characters(rollouts.prompt_ids[row], right)
        to_go = np.cumsum(np.concatenate(logprobs)[::-1])[::-1]
        begins = np.cumsum([0, *(len(line) for line in logprobs)])  # of each line in `to_go`
        to_go = np.append(to_go, 0.0)
        text = rollouts.completions[row]
        _, wrong_at = progress(right, text)
        lost = starts > (math.inf if wrong_at is None else wrong_at)
        line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        line = np.searchsorted(line_starts, starts, side="right") - 1
        values = np.zeros(len(starts))
        for t in np.flatnonzero(rollouts.completion_mask[row] & ~lost):
            number = line[t]
            if number >= len(right):
                continue
            begun = text[line_starts[number] : starts[t]]
            opener = re.match("[a-z]+ ", begun) if number < len(right) - 1 else None
            written = len(begun) - (opener.end() if opener else 0)
            written = min(written, len(logprobs[number]))
            values[t] = math.exp(to_go[begins[number] + written])
        return values

    def _right_characters(self, prompt_ids: list[int], right: list[str]) -> list[np.ndarray]:
        """Log-prob of each character of each right line, its end included, after an opener."""
        lines = [[*self.tokenizer.encode(OPENER), *self._line(line)] for line in right[:-1]]
        lines.append([*self.tokenizer.encode(right[-1]), self.tokenizer.eos_token_id])
        ids = [i for line in lines for i in line]
        chosen = self.base.logprobs(prompt_ids, ids)[np.arange(len(ids)), ids]
        parts = np.split(chosen, np.cumsum([len(line) for line in lines])[:-1])
        skipped = len(self.tokenizer.encode(OPENER))
        return [*(part[skipped:] for part in parts[:-1]), self._by_character(right[-1], parts[-1])]

    def _line(self, line: str) -> list[int]:
        return self.tokenizer.encode(line + "\n")

    def _by_character(self, line: str, logprobs: np.ndarray) -> np.ndarray:
        """A tag is one token: its log-prob stands at its first character."""
        spread, at = np.zeros(len(line) + 1), 0
        for token, logprob in zip(self.tokenizer.encode(line), logprobs, strict=False):
            spread[at] = logprob
            at += len(self.tokenizer.decode([token]))
        spread[-1] = logprobs[-1]
        return spread
