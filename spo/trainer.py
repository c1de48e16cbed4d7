"""Prompts, reward functions and models -> a trained policy and critic.

`SPOTrainer.train` is the whole loop; its phases stand below it in the order they are called.
Everything between scoring and the update is numpy on the global rollout batch, so every process
computes the same credit and then trains on its own share of the rows.

Axes: B completions of the rollout batch over all processes, T completion tokens.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from transformers import PreTrainedModel, TrainerCallback

from spo import checkpoints, evaluation, models
from spo.advantages import Credit, assign_credit
from spo.callbacks import Callbacks
from spo.config import SPOConfig
from spo.data import PromptBatches, prepare_prompts
from spo.features import PathValue
from spo.generation import (
    Completions,
    Sampling,
    completion_texts,
    eos_token_ids,
    external_completions,
    sample,
    uniforms,
)
from spo.loading import quantization_config, resolve_tokenizer
from spo.metrics import rollout_metrics
from spo.optimizers import build_optimizer, build_scheduler, make_accelerator
from spo.reporting import PhaseTimer, Reporter
from spo.rewards import (
    CompletionRewards,
    load_reward_functions,
    nothing_scored,
    score_completions,
)
from spo.rollouts import Rollouts, save_rollouts, stack_rows
from spo.scoring import token_columns
from spo.update import Updater


class SPOTrainer:
    """Segment Policy Optimization, with the arguments a TRL user knows from GRPOTrainer.

    Args:
        model: a causal language model, a PeftModel, or the path or hub id of either.
        reward_funcs: one or a list of: function `f(prompts, completions, completion_ids,
            **columns) -> list[float | None]` (or a list of floats per completion token), the name
            of a built-in, "package.module:function", a sequence-classification model or its path.
        args: the configuration.
        train_dataset: column "prompt" as text or chat messages; all others go to the rewards.
        eval_dataset: held-out prompts, evaluated before the first and after the last step.
        processing_class: the tokenizer; None: the model's own.
        reward_processing_classes: tokenizers of reward models, in the order of reward_funcs.
        callbacks: Transformers' TrainerCallbacks.
        optimizers: (optimizer, scheduler) to use instead of those `args` describes; the
            optimizer needs the policy in group 0 and the critic in group 1.
        peft_config: put this adapter on the model.
        quantization_config: load a model given by name with it.
        value_model: the critic: a sequence-classification model with one label, its path, or
            "policy"; None: as `args.value_model_path` says.
        rollout_func: samples instead of the trainer: `f(prompts, trainer) -> {"prompt_ids",
            "completion_ids"}` with one entry per prompt given; further keys go to the rewards.

    Raises:
        ValueError: settings, data or models that do not fit together; one sentence each.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | Any,
        reward_funcs: Any,
        args: SPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
        value_model: Any = None,
        rollout_func: Callable[..., dict[str, list]] | None = None,
    ):
        self.args = args or SPOConfig()
        self.accelerator = make_accelerator(self.args)
        set_seed(self.args.seed)
        self.rollout_func = rollout_func
        value_model = value_model if value_model is not None else self.args.value_model_path
        if not self.args.use_value_network:
            value_model = None
        wants_path_value = self.args.wants_path_value(has_value_network=value_model is not None)
        self.path_value = PathValue() if wants_path_value else None
        self.has_critic = value_model is not None or self.path_value is not None
        self.args.check_batches(self.accelerator.num_processes, self.has_critic)

        self.processing_class = resolve_tokenizer(
            model, processing_class, self.args.model_init_kwargs
        )
        self.train_dataset = self._prepare(train_dataset, "train_dataset")
        self.eval_dataset = None
        if eval_dataset is not None:
            self.eval_dataset = self._prepare(eval_dataset, "eval_dataset")
        self._load_rewards(reward_funcs, reward_processing_classes)
        self.output_dir = checkpoints.prepare_output_dir(self.args, self.accelerator)
        self.policy, self.reference, self.critic = models.build_networks(
            model,
            value_model,
            self.args,
            self.processing_class,
            self.accelerator.device,
            peft_config,
            quantization_config,
        )
        if self.path_value is not None and isinstance(value_model, str):
            self.path_value.load(Path(value_model))
        self._plan_steps()
        self._build_optimizers(*optimizers)
        self.callbacks = Callbacks(callbacks or [], self)
        self.state, self.control = self.callbacks.state, self.callbacks.control
        self.run_details = {"base_model": self.policy.model.config._name_or_path}
        self.reporter = Reporter(self.args, self.accelerator, self.output_dir, self.max_steps)
        self.timer = PhaseTimer(self.accelerator.device)
        self.updater = Updater(self)
        self.any_scored = False

    # --- the loop ----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, float]:
        """Train until `max_steps`, save the model, and return the last metrics.

        `resume_from_checkpoint`: "latest" (or True) or a checkpoint folder; None: as `args` says.
        """
        start = self._begin(resume_from_checkpoint)
        metrics: dict[str, float] = {}
        for step in range(start + 1, self.max_steps + 1):
            prompts = self.batches.indices(step - 1)
            samples = self.generate(step, prompts)
            rollouts = self.value(step, self.score(step, prompts, samples))
            with self.timer("credit"):
                credit = assign_credit(rollouts, self.args)
            metrics = self.update(rollouts, credit)
            self.finish_step(step, rollouts, credit, metrics)
            if self.control.should_training_stop:
                break
        return self._end(metrics)

    # --- phase 1: generate -------------------------------------------------------------------

    def generate(self, step: int, prompts: np.ndarray) -> Completions:
        """Sample this process's rows of the rollout batch; `prompts` are data set rows, (P,)."""
        with self.timer("generate"):
            prompt_rows = self.train_dataset.select(self._local(prompts))
            if self.rollout_func is not None:
                output = self.rollout_func(list(prompt_rows["prompt"]), self)
                eos_ids = eos_token_ids(self.policy.model, self.processing_class)
                return external_completions(output, len(prompt_rows), eos_ids)
            rows = self._local(np.arange(len(prompts) * self.args.num_generations))
            noise = uniforms(self.args.seed, step, rows, self.args.max_completion_length)
            sampling = self.sampling(self.args.temperature)
            return self.sample(prompt_rows["prompt_ids"], noise, sampling)

    def _local(self, values: np.ndarray) -> np.ndarray:
        """This process's share of per-prompt or per-row values, prompts repeated to rows."""
        num_rows = self.args.rollout_batch_size(self.accelerator.num_processes)
        by_row = np.repeat(values, num_rows // len(values))
        share = num_rows // self.accelerator.num_processes
        start = self.accelerator.process_index * share
        return by_row[start : start + share]

    def sample(self, prompt_ids, noise: np.ndarray, sampling: Sampling) -> Completions:
        """Complete prompts with the current policy."""
        self.policy.train(False)
        with self.policy.decoding(self.accelerator.autocast, self.args.fold_adapter):
            return sample(
                self.policy.model,
                list(prompt_ids),
                noise,
                sampling,
                self.args.per_device_generation_batch_size,
            )

    def sampling(self, temperature: float) -> Sampling:
        return Sampling(
            max_new_tokens=self.args.max_completion_length,
            eos_token_ids=eos_token_ids(self.policy.model, self.processing_class),
            temperature=temperature,
            top_k=self.args.top_k,
            top_p=self.args.top_p,
        )

    # --- phase 2: score ----------------------------------------------------------------------

    @torch.no_grad()
    def score(self, step: int, prompts: np.ndarray, samples: Completions) -> Rollouts:
        """Log-probs, entropies and rewards of all rows, and values where they take a pass of their
        own: the global rollout batch."""
        with self.timer("score"):
            indices = self._local(prompts)
            prompt_rows = self.train_dataset.select(indices)
            texts, ends = completion_texts(self.processing_class, samples.token_ids)
            rewards = self.rewards(prompt_rows, texts, samples)
            critic = None if self.updater.critic_comes_first else self.critic
            networks = (self.policy, self.reference, critic)
            prompt_ids = samples.prompt_ids or list(prompt_rows["prompt_ids"])
            columns_of_tokens = token_columns(
                networks, prompt_ids, samples, self.accelerator, self.args
            )
            records = [
                {
                    "prompt_index": indices[i],
                    "prompt": prompt_rows[i]["prompt_text"],
                    "completion": texts[i],
                    "token_ends": ends[i],
                    "token_rewards": rewards.token_rewards[i, : len(samples.token_ids[i])],
                    "reward": rewards.completion_rewards[i] if rewards.scorable[i] else np.nan,
                    "rewards_by_function": rewards.rewards_by_function[i],
                    **columns,
                }
                for i, columns in enumerate(columns_of_tokens)
            ]
        rollouts = stack_rows(
            gather_object(records),
            step=step,
            num_generations=self.args.num_generations,
            reward_names=[function.name for function in self.reward_functions],
        )
        if not rollouts.completion_mask.any():
            raise ValueError(
                f"Step {step}: every completion is empty; check the end token and the prompts."
            )
        self._check_scored(rollouts)
        return rollouts

    def _check_scored(self, rollouts: Rollouts) -> None:
        """Raise where no completion of the run has a reward yet; warn where a later batch has
        none: it teaches nothing."""
        if not np.isnan(rollouts.completion_rewards).all():
            self.any_scored = True
        elif not self.any_scored:
            raise nothing_scored(rollouts.reward_names, len(rollouts))
        else:
            warnings.warn(f"Step {rollouts.step}: no completion could be scored.", stacklevel=2)

    def rewards(self, prompt_rows, texts: list[str], samples: Completions) -> CompletionRewards:
        """Call the reward functions on this process's rows."""
        columns = {
            name: list(prompt_rows[name])
            for name in prompt_rows.column_names
            if name not in ("prompt", "prompt_text", "prompt_ids")
        }
        prompts = list(prompt_rows["prompt"])
        chat = not isinstance(prompts[0], str)
        completions = (
            [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
        )
        return score_completions(
            self.reward_functions,
            self.args.reward_weights,
            prompts,
            completions,
            samples.token_ids,
            columns | samples.columns,
            np.array([len(ids) for ids in samples.token_ids]),
        )

    def value(self, step: int, rollouts: Rollouts) -> Rollouts:
        """The rollouts with the critic's values; its training pass may be what gives them."""
        with self.timer("update"):
            return self.updater.begin(step, rollouts)

    # --- phase 4: update (phase 3 is assign_credit) ------------------------------------------

    def update(self, rollouts: Rollouts, credit: Credit) -> dict[str, float]:
        """All optimizer updates of one rollout batch."""
        with self.timer("update"):
            metrics = self.updater.run(credit)
        return rollout_metrics(rollouts, credit, self.args) | metrics

    # --- phase 5: finish ---------------------------------------------------------------------

    def finish_step(
        self, step: int, rollouts: Rollouts, credit: Credit, metrics: dict[str, float]
    ) -> None:
        """Log, save rollouts, evaluate, checkpoint, and tell the callbacks."""
        self.state.global_step, self.state.epoch = step, self.batches.epoch(step)
        metrics |= self.timer.metrics(int(rollouts.completion_mask.sum()))
        self.reporter.log_step(step, self.state.epoch, metrics)
        self.reporter.show_completions(step, rollouts)
        if self._due(step, self.args.save_rollouts_steps) and self.accelerator.is_main_process:
            path = self.output_dir / "rollouts" / f"step-{step:06d}.parquet"
            save_rollouts(rollouts, path, credit, self.args, self.run_id)
        self.callbacks.call("on_log", logs=metrics)
        self.callbacks.call("on_step_end")
        last = step == self.max_steps or self.control.should_training_stop
        wanted = self._due(step, self.args.eval_steps) or last or self.control.should_evaluate
        if self.eval_dataset is not None and wanted:
            self.control.should_evaluate = False
            self.evaluate()
        if self._due(step, self.args.save_steps) or self.control.should_save:
            self.control.should_save = False
            self.save_checkpoint(step)

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    # --- evaluation, saving ------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None) -> dict[str, float]:
        """Mean rewards on held-out prompts, one completion each at `eval_temperature`."""
        dataset = self.eval_dataset
        if eval_dataset is not None:
            dataset = self._prepare(eval_dataset, "eval_dataset")
        if dataset is None:
            raise ValueError("There is no eval_dataset to evaluate on.")
        metrics = evaluation.evaluate(self, dataset)
        self.reporter.log_eval(self.state.global_step, metrics)
        self.callbacks.call("on_evaluate", metrics=metrics)
        return metrics

    def save_checkpoint(self, step: int) -> Path:
        """Everything `train(resume_from_checkpoint=...)` needs to continue exactly."""
        path = checkpoints.save_checkpoint(self, step)
        self.callbacks.call("on_save")
        return path

    def save_model(self, output_dir: str | os.PathLike | None = None) -> Path:
        """Policy (adapter or full), critic, tokenizer, configuration and model card."""
        return checkpoints.save_model(self, Path(output_dir or self.output_dir))

    def push_to_hub(self, commit_message: str = "Upload SPO model", **kwargs: Any) -> str | None:
        """Upload what `save_model` saved; returns the commit's address on the main process."""
        return checkpoints.push_to_hub(self, commit_message, **kwargs)

    # --- beginning and end -------------------------------------------------------------------

    def _begin(self, resume_from_checkpoint: str | bool | None) -> int:
        """Evaluate, or restore a checkpoint; returns the steps already done."""
        resume = resume_from_checkpoint or self.args.resume_from_checkpoint
        if not (resume or self.state.global_step) and checkpoints.checkpoints_in(self.output_dir):
            checkpoints.refuse_another_run(self.output_dir)
        start = checkpoints.resume(self, resume) if resume else 0
        self.state.global_step = start
        self.any_scored = start > 0
        self.reporter.begin(start, resumed=bool(resume))
        checkpoints.write_config(self)
        self.callbacks.call("on_train_begin")
        if self.eval_dataset is not None and not resume:
            self.evaluate()
        return start

    def _end(self, metrics: dict[str, float]) -> dict[str, float]:
        """Save and upload."""
        self.reporter.end()
        self.save_model()
        if self.args.push_to_hub:
            self.push_to_hub()
        self.callbacks.call("on_train_end")
        return metrics

    # --- construction ------------------------------------------------------------------------

    def _prepare(self, dataset: Any, name: str):
        """Tokenise the prompts of a data set; says how many were dropped or cut."""
        if dataset is None:
            raise ValueError(f"{name} is missing.")
        prepared = prepare_prompts(
            dataset,
            self.processing_class,
            max_prompt_length=self.args.max_prompt_length,
            overlong_prompts=self.args.overlong_prompts,
        )
        if prepared.num_dropped or prepared.num_truncated:
            self.accelerator.print(
                f"{name}: of {len(dataset)} prompts, {prepared.num_dropped} over "
                f"max_prompt_length={self.args.max_prompt_length} tokens were dropped and "
                f"{prepared.num_truncated} truncated on the left."
            )
        return prepared.dataset

    def _load_rewards(self, reward_funcs: Any, processing_classes: Any) -> None:
        self.reward_functions = load_reward_functions(
            reward_funcs,
            processing_classes,
            max_completion_length=self.args.max_completion_length,
            device=self.accelerator.device,
            quantization_config=quantization_config(
                self.args.reward_bits, compute_dtype=self.args.compute_dtype
            ),
        )
        weights = self.args.reward_weights
        if weights is not None and len(weights) != len(self.reward_functions):
            raise ValueError(
                f"reward_weights has {len(weights)} entries for {len(self.reward_functions)} "
                "reward functions."
            )

    def _plan_steps(self) -> None:
        """How many steps there are, and which prompts each of them takes."""
        args, processes = self.args, self.accelerator.num_processes
        prompts_per_step = args.rollout_batch_size(processes) // args.num_generations
        num_prompts = len(self.train_dataset)
        self.batches = PromptBatches(num_prompts, prompts_per_step, args.seed, args.shuffle_dataset)
        by_epochs = -(-int(num_prompts * args.num_train_epochs) // prompts_per_step)
        self.max_steps = args.max_steps if args.max_steps > 0 else max(by_epochs, 1)
        self.run_id = checkpoints.run_id(self.output_dir, args)

    def _build_optimizers(self, optimizer, scheduler) -> None:
        if optimizer is None:
            critic_parameters = self.critic.parameters if self.critic else ()
            optimizer = build_optimizer(self.args, self.policy.parameters, critic_parameters)
        if scheduler is None:
            updates = self.max_steps * self.args.updates_per_step(self.accelerator.num_processes)
            scheduler = build_scheduler(self.args, optimizer, updates)
        self.optimizer, self.lr_scheduler = self.accelerator.prepare(optimizer, scheduler)
