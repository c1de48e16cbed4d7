"""What goes wrong when a policy breaks down: the first wrong thing in each held-out solution.

    python benchmarks/breakdowns.py

GRPO mode on chain_sum at the learning rate of benchmarks/learning.py, without a KL penalty and with
the one used there. Every ten updates 400 held-out solutions are sampled and read line by line: is
the sum wrong, as the base model's slips are, or has the model lost its place in the problem?
"""

import argparse
import json
import re
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from common import RESULTS, write_result
from learning import make_base, sampled_solutions
from learning_modes import FIRST
from learning_tasks import TASKS, Task, problems
from transformers import TrainerCallback

from spo import SPOConfig, SPOTrainer

STEP = re.compile(r"(?:[a-z]+ )?(-?\d+)([+-])(\d+)=(-?\d+)")
ANSWER = re.compile(r"<answer>(-?\d+)</answer>")


def first_mistake(expression: str, solution: str) -> str | None:
    """None for a faultless solution of a sum such as `4 - 1 + 7`, else one of

    - "sum": a step's result is wrong;
    - "place": another number or sign than the next one of the problem, or too few or many steps;
    - "copy": the step or the answer does not go on from the number before;
    - "form": a line that is neither step nor answer.

    >>> first_mistake("4 - 1 + 7", "4-1=3\\nso 3+7=11\\n<answer>11</answer>")
    'sum'
    >>> first_mistake("4 - 1 + 7", "4-1=3\\nso 3-1=2\\n<answer>2</answer>")
    'place'
    """
    first, *rest = expression.split()
    total, terms = int(first), list(zip(rest[::2], rest[1::2], strict=True))
    *steps, answer = solution.split("\n")
    for i, line in enumerate(steps):
        step = STEP.fullmatch(line)
        if step is None:
            return "form"
        left, operator, term, result = step.groups()
        if int(left) != total:
            return "copy"
        if i >= len(terms) or (operator, term) != terms[i]:
            return "place"
        total = total + int(term) if operator == "+" else total - int(term)
        if int(result) != total:
            return "sum"
    given = ANSWER.fullmatch(answer)
    if given is None:
        return "form"
    if len(steps) < len(terms):
        return "place"
    return None if int(given[1]) == total else "copy"


class Reader(TrainerCallback):
    """Counts first mistakes on the held-out problems every few updates."""

    def __init__(self, held_out, every: int):
        self.held_out, self.every = held_out, every
        self.counts: list[dict] = []

    def read(self, trainer: SPOTrainer, update: int) -> None:
        settings = vars(trainer.args)
        batch, solutions = sampled_solutions(
            trainer.policy, trainer.processing_class, self.held_out, settings
        )
        entries = map(json.loads, batch["entry"])
        expressions = [entry["metadata"]["expression"] for entry in entries]
        found = Counter(map(first_mistake, expressions, solutions))
        shares = {kind or "none": count / len(batch) for kind, count in found.items()}
        self.counts.append({"update": update, "shares": shares})
        print(self.counts[-1], flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.read(self.trainer, state.global_step)


def mistakes(task: Task, beta: float, seed: int, updates: int, every: int) -> list[dict]:
    settings = task.settings | FIRST["grpo"] | {"beta": beta, "seed": seed, "max_steps": updates}
    train, held_out = problems(task, settings)
    reader = Reader(held_out, every)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SPOTrainer(
            model=str(task.base_folder),
            reward_funcs="reasoning_gym",
            args=SPOConfig(
                output_dir=folder,
                save_rollouts_steps=0,
                log_completions=False,
                disable_tqdm=True,
                use_cpu=True,
                **settings,
            ),
            train_dataset=train,
            callbacks=[reader],
        )
        reader.trainer = trainer
        reader.read(trainer, 0)
        trainer.train()
    return reader.counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=("chain_sum", "smoke"), default="chain_sum")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--updates", type=int, default=80)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    make_base(options.task)
    task = TASKS[options.task]
    betas = (0.0, task.settings["beta"])
    arguments = (options.seed, options.updates, options.every)
    runs = [{"beta": beta, "mistakes": mistakes(task, beta, *arguments)} for beta in betas]
    write_result("breakdowns", {"task": options.task, "mode": "grpo", "runs": runs}, options.out)


if __name__ == "__main__":
    main()
