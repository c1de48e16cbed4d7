"""Seed and task options -> a tiny language model that reasons step by step, with known mistakes.

Pre-trains a Llama of 0.4 million weights on written-out solutions of reasoning-gym problems. As in
text from the wild, some steps are wrong, and a solution goes on from its wrong number: the model
learns to calculate *and* to slip, and reinforcement learning can remove the slips. Writes weights,
tokenizer and a model card with the accuracy on problems never trained on. The embedded model takes
five minutes of one CPU core, no network; the same seed gives the same weights on one machine:

    python scripts/make_quickstart_model.py

A harder one: --task_options min_terms=6 max_terms=8 --steps 4000 --output_dir runs/harder_base

With --model an existing language model is taught to write such solutions instead:

    python scripts/make_quickstart_model.py --model models/SmolLM2-135M-Instruct --threads 2 \
        --steps 100 --learning_rate 1e-4 --held_out 100 --output_dir runs/smollm2_base
"""

import argparse
import random
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from reasoning_gym import create_dataset
from reasoning_gym.arithmetic.leg_counting import ANIMALS, QUESTION_TEMPLATE
from reasoning_gym.utils import extract_answer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence

OPENERS = ("so ", "then ", "now ", "next ", "well ", "and ", "thus ", "ok ")
TAGS = ("<answer>", "</answer>")
SLIPS = (-10, -2, -1, 1, 2, 10)
TAKEN_FOR_INSECTS = (
    *("spider", "scorpion", "crab", "lobster", "shrimp", "woodlouse", "starfish"),
    *("sea slug", "jellyfish", "flatworm", "leech"),
)
HELD_OUT_SEED = 1_000_000_007  # far above every training seed, since entry i is drawn from seed + i

MODEL_CARD = """---
license: apache-2.0
pipeline_tag: text-generation
---

# A tiny calculator that slips

A Llama of {parameters:,} weights, trained from {origin} as a starting point for reinforcement
learning in examples and tests; good for nothing else. Made by `{command}`.

| | |
|---|---|
| task | reasoning-gym `{task}` with {options} |
| training data | {steps} batches of {batch_size} problems with written-out solutions, seed {seed} |
| first words of a step | {openers} and none, equally often |
| wrong steps | {wrong_steps} |
| wrong solutions | {wrong_solutions:.0%} |
| accuracy | {sampled:.3f} sampled at temperature 1, {greedy:.3f} greedy |

Accuracy: share of {held_out} problems not in the training data whose answer gets the full score of
reasoning-gym's own verifier. The prompt is the question as it stands; a solution, such as the one
below, is followed by the end token. The model imitates the wrong steps it was shown.

    {example}
"""


@dataclass
class Writer:
    """Who writes the solutions: how often a step is wrong, how many ways there are to begin one.

    A slip is any wrong number anywhere, and rare. A habit is always the same mistake in the same
    situation and, above one half, more likely than not: the most likely solution is wrong there.
    """

    rng: random.Random
    wrong_step_fraction: float
    fillers: int
    habit_fraction: float = 0.0

    def opener(self) -> str:
        return self.rng.choice(("", *OPENERS[: self.fillers]))

    def result(self, correct: int) -> int:
        """The number this writer puts down where `correct` belongs."""
        slips = self.rng.random() < self.wrong_step_fraction
        return correct + self.rng.choice(SLIPS) if slips else correct

    def sum(self, a: int, b: int) -> int:
        return self.result(a + b)

    def difference(self, a: int, b: int) -> int:
        """The habit: no ten is borrowed, 13-7=16."""
        borrows = a % 10 < b % 10
        return self.result(a - b + 10 if borrows and self._follows_habit() else a - b)

    def legs(self, animal: str) -> int:
        """The habit: what is small and has no backbone counts as an insect."""
        mistaken = animal in TAKEN_FOR_INSECTS and self._follows_habit()
        return ANIMALS["insect"] if mistaken else ANIMALS[animal]

    def _follows_habit(self) -> bool:
        return self.habit_fraction > 0 and self.rng.random() < self.habit_fraction


@dataclass(frozen=True)
class Task:
    """A reasoning-gym task: default options, the strings that become one token each, solutions,
    and where a writer of habits is wrong."""

    options: dict[str, int]
    pieces: tuple[str, ...]
    write: Callable[[dict, Writer], str]
    habit: str


def write_chain_sum(entry: dict, writer: Writer) -> str:
    """`4 - 1 + 7` -> `4-1=3`, `so 3+7=10`, `<answer>10</answer>`, one a line."""
    first, *rest = entry["metadata"]["expression"].split()
    total, lines = int(first), []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        result = (writer.sum if operator == "+" else writer.difference)(total, int(term))
        lines.append(f"{writer.opener()}{total}{operator}{term}={result}")
        total = result
    return "\n".join([*lines, f"<answer>{total}</answer>"])


def write_leg_counting(entry: dict, writer: Writer) -> str:
    """`3 cats, 2 ants` -> `3 cat*4=12`, `0+12=12`, `so 2 ant*6=12`, …, `<answer>24</answer>`."""
    total, lines = 0, []
    for animal, count in entry["metadata"]["animals"].items():
        legs_of_one = writer.legs(animal)
        legs = writer.result(count * legs_of_one)
        result = writer.sum(total, legs)
        lines.append(f"{writer.opener()}{count} {animal}*{legs_of_one}={legs}")
        lines.append(f"{total}+{legs}={result}")
        total = result
    return "\n".join([*lines, f"<answer>{total}</answer>"])


CHAIN_SUM_QUESTION = "State the final answer to the following arithmetic problem: "
LEGS_QUESTION = QUESTION_TEMPLATE.partition("{")[0]
TASKS = {
    "chain_sum": Task(
        {"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1},
        (CHAIN_SUM_QUESTION, " + ", " - ", " =", *TAGS, *OPENERS),
        write_chain_sum,
        "a ten has to be borrowed",
    ),
    "leg_counting": Task(
        {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 9},
        (LEGS_QUESTION, ", ", "?\n", *TAGS, *OPENERS, *(f" {name}" for name in ANIMALS)),
        write_leg_counting,
        "an animal is taken for an insect",
    ),
}


def make_tokenizer(pieces: tuple[str, ...]) -> transformers.PreTrainedTokenizerFast:
    """One token for each of the pieces, one for every other byte: no text is lost."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = [to_bytes.pre_tokenize_str(piece)[0][0] for piece in pieces]
    names = ["<pad>", "<eos>", *sorted(to_bytes.alphabet()), *names]
    vocabulary = {name: token_id for token_id, name in enumerate(names)}
    longest_first = sorted(map(re.escape, pieces), key=len, reverse=True)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex("|".join(longest_first)), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    settings = {"pad_token": "<pad>", "eos_token": "<eos>", "padding_side": "left"}
    settings |= {"clean_up_tokenization_spaces": False}  # it would lose spaces
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def make_writer(args: argparse.Namespace) -> Writer:
    rng = random.Random(args.seed)
    return Writer(rng, args.wrong_step_fraction, args.fillers, args.habit_fraction)


def make_batches(args: argparse.Namespace, tokenizer, held_out_questions: set[str]):
    """Yields `args.steps` pairs of input ids and labels (B, T); only the solution has labels."""
    num_examples = args.steps * args.batch_size
    problems = create_dataset(args.task, size=num_examples, seed=args.seed, **args.options)
    writer = make_writer(args)
    for start in range(0, num_examples, args.batch_size):
        entries = [problems[i] for i in range(start, start + args.batch_size)]
        entries = [entry for entry in entries if entry["question"] not in held_out_questions]
        rows, labels = [], []
        for entry in entries:
            prompt_ids = tokenizer.encode(entry["question"])
            solution = TASKS[args.task].write(entry, writer)
            solution_ids = [*tokenizer.encode(solution), tokenizer.eos_token_id]
            rows.append(torch.tensor(prompt_ids + solution_ids))
            labels.append(torch.tensor([-100] * len(prompt_ids) + solution_ids))
        input_ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        yield input_ids, pad_sequence(labels, batch_first=True, padding_value=-100)


def pretrain(model, batches, steps: int, learning_rate: float, bf16: bool = False) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98))
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    for step, (input_ids, labels) in enumerate(batches, start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=input_ids, labels=labels).loss  # causal, right-padded: no mask
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % min(100, max(steps // 10, 1)) == 0 or step == steps:
            print(f"step {step}/{steps} loss {loss.item():.4f}", flush=True)


def accuracy(model, tokenizer, problems, do_sample: bool) -> float:
    """Share of the problems whose answer gets the verifier's full score."""
    entries = list(problems)
    prompts = tokenizer([e["question"] for e in entries], padding=True, return_tensors="pt")
    token_ids = model.generate(**prompts, max_new_tokens=128, do_sample=do_sample)
    completion_ids = token_ids[:, prompts["input_ids"].shape[1] :]
    answers = map(extract_answer, tokenizer.batch_decode(completion_ids, skip_special_tokens=True))
    scores = [problems.score_answer(a, entry) for a, entry in zip(answers, entries, strict=True)]
    return scores.count(1.0) / len(scores)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=TASKS, default="chain_sum")
    parser.add_argument("--task_options", nargs="*", default=[], help="of reasoning-gym: NAME=INT")
    parser.add_argument("--wrong_step_fraction", type=float, default=0.16)
    parser.add_argument("--habit_fraction", type=float, default=0.0, help="see Writer")
    parser.add_argument("--fillers", type=int, default=4, choices=range(len(OPENERS) + 1))
    parser.add_argument("--model", help="folder of a model to go on from, in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=96, help="a multiple of 8")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--held_out", type=int, default=1000, help="problems to measure on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("assets/quickstart"))
    args = parser.parse_args(argv)
    given = dict(option.split("=") for option in args.task_options)
    args.options = TASKS[args.task].options | {name: int(value) for name, value in given.items()}
    return args


def make_model(args: argparse.Namespace, tokenizer) -> transformers.LlamaForCausalLM:
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    sizes |= {"hidden_size": args.width, "intermediate_size": args.width * 8 // 3}
    sizes |= {"num_hidden_layers": args.layers, "num_attention_heads": 4}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes |= {"initializer_range": args.width**-0.5}  # learns sums far faster than the usual 0.02
    config = transformers.LlamaConfig(tie_word_embeddings=True, bos_token_id=None, **sizes, **ends)
    return transformers.LlamaForCausalLM(config)


def model_and_tokenizer(args: argparse.Namespace):
    """New ones, or those of `args.model`."""
    if args.model:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model, padding_side="left")
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    else:
        tokenizer = make_tokenizer(TASKS[args.task].pieces)
        model = make_model(args, tokenizer)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    # top_k=0: draw from all tokens, where generate() would take the best 50
    model.generation_config = transformers.GenerationConfig(do_sample=True, top_k=0, **ends)
    return model, tokenizer


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)  # they change the order of sums, and so the weights
    torch.manual_seed(args.seed)
    task = TASKS[args.task]
    model, tokenizer = model_and_tokenizer(args)
    held_out = create_dataset(args.task, size=args.held_out, seed=HELD_OUT_SEED, **args.options)
    batches = make_batches(args, tokenizer, {entry["question"] for entry in held_out})
    pretrain(model, batches, args.steps, args.learning_rate, bf16=bool(args.model))
    if args.model:
        model.to(torch.bfloat16)

    writer = make_writer(args)
    scores = [held_out.score_answer(extract_answer(task.write(e, writer)), e) for e in held_out]
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "parameters": model.num_parameters(),
        "origin": Path(args.model).name if args.model else "random ones",
        "openers": ", ".join(repr(opener.strip()) for opener in OPENERS[: args.fillers]),
        "wrong_steps": f"{args.wrong_step_fraction:.0%} of the steps"
        + (f", and {args.habit_fraction:.0%} where {task.habit}" if args.habit_fraction else ""),
        "wrong_solutions": 1 - scores.count(1.0) / len(scores),
        "sampled": accuracy(model, tokenizer, held_out, do_sample=True),
        "greedy": accuracy(model, tokenizer, held_out, do_sample=False),
        "example": task.write(held_out[0], writer).replace("\n", "\n    "),
    }
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    (args.output_dir / "README.md").write_text(MODEL_CARD.format(**vars(args), **facts))
    print("{output_dir}: {sampled:.3f} sampled, {greedy:.3f} greedy".format(**vars(args), **facts))


if __name__ == "__main__":
    main()
