"""Prompts, reward functions and models -> a trained policy and critic.

`SPOTrainer.train` is the whole loop; everything in it is a function, or a part that `__init__`
builds. Credit is assigned in numpy on the global rollout batch, so every process computes the same
and then trains on its own share of the rows.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from accelerate.utils import set_seed
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import TrainOutput

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.errors import NonFiniteLossError
from spo.generation.build import build_generator, sampling_params
from spo.generation.toolbox import build_toolbox
from spo.learner import build_learner
from spo.metrics import rollout_metrics
from spo.networks.build import build_networks
from spo.networks.checks import check_lengths, known_positions, warn_endless
from spo.networks.loading import resolve_tokenizer
from spo.optimizers import make_accelerator
from spo.rewards.build import build_rewards
from spo.rewards.columns import check_columns
from spo.rollouts import Credit, Rollouts
from spo.rows import columns_of
from spo.run import folder
from spo.run.guard import guarded
from spo.run.identity import identity
from spo.run.reporter import PhaseTimer
from spo.run.run import Run
from spo.run.surface import TrainerSurface
from spo.scoring import check_finite, check_scored, score
from spo.segments import segment
from spo.streams import plan_prompts
from spo.update import update
from spo.values.build import CriticBuilder


class SPOTrainer(TrainerSurface):
    """Segment Policy Optimization, with the arguments a TRL user knows from GRPOTrainer.

    Args:
        model: a causal language model, a PeftModel, or the path or hub id of either.
        reward_funcs: one or a list of: function `f(prompts, completions, completion_ids,
            **columns) -> list[float | None]` (or a list of floats per completion token), the name
            of a built-in, "package.module:function", a sequence-classification model or its path.
        args: the configuration.
        train_dataset: column "prompt" as text or chat messages; all others go to the rewards.
        eval_dataset: held-out prompts, or a dict of such data sets by name, evaluated before the
            first and after the last step.
        processing_class: the tokenizer; None: the model's own.
        reward_processing_classes: tokenizers of reward models, in the order of reward_funcs.
        callbacks: Transformers' TrainerCallbacks.
        optimizers: (optimizer, scheduler) of the policy, instead of those `args` describes.
        peft_config: put this adapter on the model.
        quantization_config: load a model given by name with it.
        value_model: the critic: a sequence-classification model with one label, its path, or
            "policy"; None: as `args.value_model_path` says.
        rollout_func: samples instead of the policy, in training and evaluation: `f(prompts,
            trainer) -> {"prompt_ids", "completion_ids"}` with one entry per prompt given, and, if
            it has them, `logprobs` and `env_mask`; further keys go to the rewards.
        tools: functions that the policy may call.
        environment_factory: makes an environment, whose public methods are tools as well; or a dict
            of such functions, from which column "environment" chooses.

    Raises:
        ValueError: settings, data or models that do not fit together; one sentence each.
    """

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel | Any,
        reward_funcs: Any = None,
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
        tools: Sequence[Callable[..., Any]] | None = None,
        environment_factory: Any = None,
    ):
        self.args = args = args or SPOConfig()
        self.accelerator = accelerator = make_accelerator(args)
        set_seed(args.seed)
        model, value_model = as_path(model), as_path(value_model)
        value_model = args.value_model_path if value_model is None else value_model
        value_model = value_model if args.use_value_network else None
        args.check_batches(accelerator.num_processes, args.wants_critic(value_model is not None))
        self.processing_class = resolve_tokenizer(model, processing_class, args.model_init_kwargs)
        self.toolbox = build_toolbox(tools, environment_factory, args.tool_timeout)
        self.train_dataset = self._prepare(train_dataset, "train_dataset")
        self.eval_dataset = None
        if eval_dataset is not None:
            self.eval_dataset = self._prepare_evaluation(eval_dataset)
        given = (reward_funcs, reward_processing_classes, self.toolbox)
        self.reward_functions = build_rewards(*given, args, accelerator.device)
        if rollout_func is None and environment_factory is None:  # which may add columns
            check_columns(self.reward_functions, columns_of(self.train_dataset))
        with folder.prepared_output_dir(args, accelerator) as self.output_dir:
            given = (self.processing_class, accelerator.device, peft_config, quantization_config)
            networks = build_networks(model, value_model, args, *given)
            self.policy, self.reference, critic_network = networks
            positions = known_positions(self.model.config)
            self.prompts = plan_prompts(self.train_dataset, args, accelerator, positions)
            self.max_steps = self.prompts.num_steps(args.max_steps, args.num_train_epochs)
            updates = args.updates_per_step(accelerator.num_processes)
            num_updates = self.max_steps * updates
            plan = (accelerator, args, num_updates)
            self.policy_learner = build_learner(self.policy, "logprobs", *plan, *optimizers)
            self.sampling_params = sampling_params(self.model, self.processing_class, args)
            self.generator = build_generator(rollout_func, self.toolbox, self, self.policy, args)
            samples = (self.processing_class, self.generator, self.sampling_params)
            parts = (self.policy, *samples, self.reward_functions, self.train_dataset, args)
            self.critic = CriticBuilder(*parts).build(
                critic_network, value_model, accelerator, num_updates
            )
            self._begin_run(callbacks or [], networks, updates)

    def _begin_run(self, callbacks: Sequence[Any], networks: tuple, updates: int) -> None:
        """Everything around the algorithm; what can be tried before the first step is."""
        held_out = self.eval_dataset
        held_out = [*held_out.values()] if isinstance(held_out, dict) else [held_out]
        for dataset in filter(None, (self.train_dataset, *held_out)):
            check_lengths(self.model.config, dataset, self.args.max_completion_length)
        ends = self.sampling_params.eos_token_ids
        warn_endless(ends, self.processing_class, self.train_dataset)
        self.timer = PhaseTimer(self.accelerator.device)
        self.run = Run(self.args, self.accelerator, self.output_dir, self.max_steps)
        handed = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        handed |= {"model": self.model, "processing_class": self.processing_class}
        self.run.listen(callbacks, **handed)
        self.run_details = {"base_model": self.model.config._name_or_path}
        self.run.identity = identity(self.prompts, updates, networks, self.reward_functions)
        self.run.prepare_saving(self._saved())
        self.run.callbacks.call("on_init_end")

    # --- the loop ----------------------------------------------------------------------------

    @guarded
    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None) -> TrainOutput:
        """Train until `max_steps`, save the model, and return (global_step, training_loss,
        metrics): the last step's, and means of the run under "mean/<name>".

        `resume_from_checkpoint`: "latest" (or True), "auto" or a checkpoint folder; None: as `args`
        says. A signal ends it after the step, with a checkpoint, by SystemExit(128 + number).
        """
        args, timer = self.args, self.timer
        for step in self._steps(resume_from_checkpoint):
            with timer("generate"):
                self.generator.load(self.policy)
                prompts = self.prompts.batch(step)
                completions = self.generator(prompts, self.sampling_params, step)
            with timer("score"):
                judges = (self.processing_class, self.reward_functions, self.policy, self.reference)
                rollouts = score(prompts, completions, *judges, args, self.state)
            self.any_scored = check_scored(rollouts, self.any_scored)
            credit = None
            try:
                check_finite(rollouts)
                with timer("credit"):
                    segment_ids = segment(rollouts, args)  # (B, T)
                with timer("update"):
                    settings = self.critic.settings
                    rollouts, value_metrics = self.critic.read(rollouts, segment_ids)
                with timer("credit"):
                    credit = assign_credit(rollouts, settings, segment_ids)
                with timer("update"):
                    metrics = update(rollouts, credit, self.policy_learner, self.critic, args)
            except NonFiniteLossError as error:
                raise self.run.explain(error, rollouts, credit) from error
            metrics = rollout_metrics(rollouts, credit, args) | value_metrics | metrics
            self.finish_step(step, rollouts, credit, settings, metrics)
        return self._finish()

    def finish_step(
        self,
        step: int,
        rollouts: Rollouts,
        credit: Credit,
        settings: SPOConfig,
        metrics: dict[str, float],
    ) -> None:
        """Log, save rollouts with the settings of their credit, evaluate, checkpoint, and tell the
        callbacks."""
        metrics |= self.timer.metrics(int(rollouts.actions.sum()))
        self.run.log_step(step, self.prompts.batches.epoch(step), metrics)
        self.run.reporter.show_completions(step, rollouts, credit)
        self.run.save_rollouts(rollouts, credit, settings)
        self._evaluate_and_save(step)
        if self.run.ends_epoch():
            self._evaluate_and_save(step, epoch_ended=True)
        self.run.stop_if_asked(self._trained())

    def _steps(self, resume_from_checkpoint: Any) -> Iterator[int]:
        """The numbers of the steps still to do."""
        start = self.run.begin(resume_from_checkpoint, self._trained())
        self.any_scored, self.state.epoch = start > 0, self.prompts.batches.epoch(start)
        at_start = self.args.eval_on_start and self.args.eval_strategy != "no"
        if self.eval_dataset is not None and at_start and not start:
            self.evaluate()
        for step in range(start + 1, self.max_steps + 1):
            self.run.begin_step()
            yield step
            if self.control.should_training_stop:
                return


def as_path(model: Any) -> Any:
    """A path as text; all else as it is."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model
