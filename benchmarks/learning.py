"""Ways to assign credit × seeds -> held-out accuracy against samples and seconds.

    python benchmarks/learning.py --sweep                 # learning rate × gradient clip, one seed
    python benchmarks/learning.py                         # all that is missing, each at its best
    python benchmarks/learning.py --tasks chain_sum_habit --modes reference values_0 --seeds 1 2
    python benchmarks/learning.py --report                # only tables and plots
    python benchmarks/learning.py --study first --modes grpo spo_p20    # the study before this one

All runs of a task and seed share the base model, the source of problems, the number of completions,
and evaluate on the same held-out problems with the same random numbers. Without a critic there are
8 solutions to a problem; a critic needs no groups, so each solution has its own. TRL's GRPOTrainer
runs on the same.

A run is one JSON; what is there already is not run again. With a tiny model it has one thread, so
several may go side by side and the CPU seconds still mean something.
"""

import argparse
import itertools
import json
import multiprocessing
import subprocess
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import learning_report
import tuned_report
from common import RESULTS, write_result
from learning_modes import (
    CONSTANT,
    EXACT,
    FIRST,
    GRID,
    MAIN,
    OF_TRL,
    PLOTTED,
    SWEPT,
    TUNED,
    tuned_settings,
)
from learning_tasks import OF_TINY_MODELS, TASKS, Task, problems

# --- one run --------------------------------------------------------------------------------------


def run(
    task_name: str, mode: str, seed: int, settings: dict[str, Any], updates: int | None
) -> dict:
    """Train once in this process -> the JSON of the run. `settings`: the mode's."""
    import torch

    from spo.precision import cpu_has_bf16

    task = TASKS[task_name]
    torch.set_num_threads(task.threads)
    warnings.filterwarnings("ignore")
    settings = task.settings | settings | {"seed": seed}
    batch_size = settings["per_device_train_batch_size"]
    settings["max_steps"] = updates or task.updates_of(batch_size)
    settings["eval_steps"] = task.eval_every_of(batch_size)
    if settings.get("bf16"):
        settings["bf16"] = cpu_has_bf16()
    train = _train_with_trl if mode in OF_TRL else partial(_train_with_spo, mode=mode)
    begun = time.perf_counter()
    steps, evaluations, clock = train(task, settings)
    return {
        "task": task_name,
        "mode": mode,
        "seed": seed,
        "settings": settings,
        "samples_per_update": batch_size,
        "evaluations": [
            {"update": step, "accuracy": accuracy, "cpu_seconds": clock.cpu[step]}
            for step, accuracy in evaluations
        ],
        "steps": steps,
        "wall_seconds": time.perf_counter() - begun,
    }


def adapter(task: Task):
    """The LoRA configuration of the task, None where all weights are trained."""
    from spo.networks.loading import lora_config

    return lora_config(task.lora_r, 2 * task.lora_r) if task.lora_r else None


def full_marks(prompts, completions, completion_ids=None, **columns) -> list[float]:
    """1 where reasoning-gym's verifier gives its full score, else 0: a part of the answer may be
    right by the habit that is to be unlearned."""
    from spo.rewards.verifiers import reasoning_gym_reward

    scores = reasoning_gym_reward(prompts, completions, completion_ids, **columns)
    return [float(score >= 1) for score in scores]


SERIES = ("reward", "entropy", "spo/explained_variance", "spo/mean_segments_per_sequence",
          "grad_norm", "spo/approx_kl", "completions/mean_length", "spo/lam",
          "spo/value_coefficient")  # fmt: skip


def _train_with_spo(task: Task, settings: dict[str, Any], mode: str):
    from exact_critic import ConstantValue, ExactValue

    from spo import SPOConfig, SPOTrainer

    train, held_out = problems(task, settings)
    clock = make_clock()
    with tempfile.TemporaryDirectory() as folder:
        args = SPOConfig(
            output_dir=folder,
            eval_temperature=1.0,
            per_device_eval_batch_size=200,
            save_rollouts_steps=0,
            log_completions=False,
            disable_tqdm=True,
            use_cpu=True,
            **settings,
        )
        trainer = SPOTrainer(
            model=str(task.base_folder),
            reward_funcs=["reasoning_gym", full_marks] if task.full_marks else "reasoning_gym",
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            callbacks=[clock],
            peft_config=adapter(task),
        )
        if mode in EXACT:
            trainer.critic.sources = (ExactValue(trainer.train_dataset),)
        if mode in CONSTANT:
            trainer.critic.sources = (ConstantValue(CONSTANT[mode]),)
        trainer.train()
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    evaluations = [(m["step"], m["eval/accuracy"]) for m in metrics if "eval/accuracy" in m]
    steps = [m for m in metrics if "reward" in m]
    shown = [name for name in SERIES if any(name in m for m in steps)]
    return {name: _series(steps, name) for name in shown}, evaluations, clock


def _series(steps: list[dict], name: str) -> list[float | None]:
    """A metric of every step; None where it was not defined."""
    return [None if m.get(name) is None else round(m[name], 5) for m in steps]


def _train_with_trl(task: Task, settings: dict[str, Any]):
    """TRL's GRPOTrainer on the same problems in the same order, evaluated by the same code."""
    import numpy as np
    from trl import GRPOConfig, GRPOTrainer

    from spo.networks.loading import load_policy, load_tokenizer
    from spo.networks.network import Network
    from spo.prompts import PromptBatches
    from spo.rewards.verifiers import reasoning_gym_reward

    train, held_out = problems(task, settings)
    batches = PromptBatches(
        len(train),
        settings["per_device_train_batch_size"] // settings["num_generations"],
        settings["seed"],
    )
    order = np.concatenate([batches.indices(step) for step in range(settings["max_steps"])])
    model = load_policy(
        str(task.base_folder), dtype="bfloat16" if settings.get("bf16") else "float32"
    )
    tokenizer = load_tokenizer(str(task.base_folder))
    network = Network(model, model.get_output_embeddings())
    evaluations: list[tuple[int, float]] = []
    every = settings["eval_steps"]

    class Evaluations(type(make_clock())):
        def on_train_begin(self, args, state, control, **kwargs):
            self._evaluate(0)
            super().on_train_begin(args, state, control, **kwargs)

        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step % every == 0 or state.global_step == args.max_steps:
                self._evaluate(state.global_step)
                self.mark()

        def _evaluate(self, step: int) -> None:
            found = sampled_accuracy(network, tokenizer, held_out, settings)
            evaluations.append((step, found))
            print(f"{step} accuracy {found:.3f}", flush=True)

    clock = Evaluations()
    shared = {name: value for name, value in settings.items() if name != "eval_steps"}
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[reasoning_gym_reward] + [full_marks] * task.full_marks,
            args=GRPOConfig(
                output_dir=folder,
                gradient_checkpointing=False,
                shuffle_dataset=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                **{"bf16": False} | shared,
            ),
            train_dataset=train.select(order),
            processing_class=tokenizer,
            callbacks=[clock],
            peft_config=adapter(task),
        )
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    names = ("reward", "entropy", "grad_norm", "completions/mean_length")
    return {name: _series(history, name) for name in names}, evaluations, clock


def sampled_solutions(network, tokenizer, held_out, settings: dict[str, Any]):
    """What SPOTrainer's evaluation samples, for a model in anyone's hands: the prepared problems
    and a text for each."""
    import numpy as np

    from spo.data import prepare_prompts
    from spo.evaluation import EVAL_STEP
    from spo.generation.engine import SamplingParams
    from spo.generation.sampler import sample, uniforms
    from spo.generation.text import completion_texts, eos_token_ids
    from spo.networks.room import RowsInFlight

    prepared = prepare_prompts(held_out, tokenizer).dataset
    length = settings["max_completion_length"]
    noise = uniforms(settings["seed"], EVAL_STEP, np.arange(len(prepared)), length)
    params = SamplingParams(length, eos_token_ids(network.model, tokenizer))
    training = network.model.training
    network.eval()
    with network.active():
        samples = sample(network, list(prepared["prompt_ids"]), noise, params, RowsInFlight(200))
    network.train(training)
    return prepared, completion_texts(tokenizer, samples.token_ids)[0]


def sampled_accuracy(network, tokenizer, held_out, settings: dict[str, Any]) -> float:
    from spo.rewards.verifiers import reasoning_gym_reward

    prepared, texts = sampled_solutions(network, tokenizer, held_out, settings)
    columns = {name: prepared[name] for name in ("entry", "task", "task_options")}
    rewards = reasoning_gym_reward(None, texts, None, **columns)
    return sum(reward >= 1 for reward in rewards) / len(prepared)


def make_clock():
    """A TrainerCallback that adds up the CPU seconds of training, evaluations left out."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.cpu: dict[int, float] = {0: 0.0}
            self.mark()

        def mark(self) -> None:
            self.marked = time.process_time()

        def on_train_begin(self, args, state, control, **kwargs):
            self.mark()

        def on_step_end(self, args, state, control, **kwargs):
            step = state.global_step
            self.cpu[step] = self.cpu[step - 1] + time.process_time() - self.marked
            self.mark()

        def on_evaluate(self, args, state, control, **kwargs):
            self.mark()

    return Clock()


# --- all of them ----------------------------------------------------------------------------------


def make_base(task_name: str) -> None:
    """The task's base model, made from its seed where it is missing."""
    folder = TASKS[task_name].base_folder
    if not (folder / "model.safetensors").is_file():
        command = [*TASKS[task_name].make_base, "--output_dir", str(folder)]
        subprocess.run(command, check=True)


def one(job: tuple) -> None:
    """Run and write one JSON; in a process of its own."""
    task_name, mode, seed, settings, updates, folder, name = job
    result = run(task_name, mode, seed, settings, updates)
    write_result(name, result, folder / task_name)
    last = result["evaluations"][-1]
    print(f"{task_name} {name}: {last['accuracy']:.3f}, {last['cpu_seconds']:.0f} s", flush=True)


def cells() -> list[dict[str, float]]:
    """Of the sweep."""
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def jobs(options: argparse.Namespace) -> list[tuple]:
    """What is asked for and not there yet, a seed of everything before the next."""
    changes = {k: json.loads(v) for k, v in (item.split("=") for item in options.set)}
    found = []
    for seed, task, mode in itertools.product(options.seeds, options.tasks, options.modes):
        if options.sweep:
            runs = [(tuned_report.cell_name(cell), cell) for cell in cells()]
            of_mode = tuned_settings(mode)
        elif options.study == "tuned":
            swept = TASKS[task].swept
            runs = [("", tuned_report.best_cell(options.out / "sweep", mode) if swept else {})]
            of_mode = tuned_settings(mode)
        else:
            runs, of_mode = [("", {})], FIRST[mode]
        for label, cell in runs:
            name = f"{mode}{label}{options.label}-seed{seed}"
            folder = options.out / ("sweep" if options.sweep else options.study)
            if not (folder / task / f"{name}.json").is_file():
                settings = of_mode | cell | changes
                found.append((task, mode, seed, settings, options.updates, folder, name))
    return found


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", choices=("tuned", "first"), default="tuned")
    parser.add_argument("--sweep", action="store_true", help="learning rates and clips, one by one")
    parser.add_argument("--tasks", nargs="+", default=list(OF_TINY_MODELS), choices=TASKS)
    parser.add_argument("--modes", nargs="+", help=f"some of {', '.join(TUNED)}; _64 behind a name "
                        "is a batch of 64")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--updates", type=int, help="fewer than the task's")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="try a setting")
    parser.add_argument("--label", default="", help="goes into the file name beside --set")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "learning")
    parser.add_argument("--report", action="store_true", help="table and plot of what is there")
    options = parser.parse_args(argv)
    if options.modes is None:
        options.modes = SWEPT if options.sweep else MAIN if options.study == "first" else TUNED
    return options


def main() -> None:
    options = parse_arguments()
    if not options.report:
        for task_name in options.tasks:
            make_base(task_name)
        spawn = multiprocessing.get_context("spawn")
        # a process serves several runs, as its start costs much of one, if their precision is one
        lasts = 1 if any(TASKS[name].lora_r for name in options.tasks) else 12
        with spawn.Pool(options.jobs, maxtasksperchild=lasts) as pool:
            for _ in pool.imap_unordered(one, jobs(options), chunksize=1):
                pass
    learning_report.report(options.out / "first", PLOTTED, options.out.parent)
    tuned_report.report(options.out, options.out.parent)


if __name__ == "__main__":
    main()
