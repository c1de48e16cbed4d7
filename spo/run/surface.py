"""What TRL's users touch on a trainer beside `train`: evaluation, saving, the state, callbacks."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import TrainOutput

from spo import evaluation
from spo.config import SPOConfig
from spo.data import prepare_split
from spo.errors import EngineError
from spo.generation.engine import Generator, SamplingParams
from spo.learner import Learner
from spo.networks.network import Network
from spo.options import nearest_hint
from spo.rewards.calling import RewardError
from spo.rewards.functions import RewardFunction
from spo.run import folder, saving
from spo.run.model_card import model_card
from spo.run.run import Run
from spo.values.critic import Critic

MEANT = {"tokenizer": "processing_class", "config": "args", "dataset": "train_dataset"}
"""What other trainers call an argument -> what it is called here."""


def guarded(train: Callable) -> Callable:
    """Train as the only one in the folder, and let a signal finish the step."""

    @functools.wraps(train)
    def train_guarded(trainer: Any, resume_from_checkpoint: str | bool | None = None) -> Any:
        run = trainer.run
        with folder.locked(run.output_dir, run.accelerator), run.signals:
            try:
                return train(trainer, resume_from_checkpoint)
            except (RewardError, EngineError):  # before anything of the step was learned
                run.save_finished(trainer._trained())
                raise

    return train_guarded


class TrainerSurface:
    """The half of SPOTrainer that is no algorithm. Needs what the annotations name."""

    args: SPOConfig
    accelerator: Accelerator
    run: Run
    policy: Network
    reference: Network | None
    critic: Critic
    policy_learner: Learner
    generator: Generator
    sampling_params: SamplingParams
    reward_functions: list[RewardFunction]
    processing_class: Any
    eval_dataset: Any
    run_details: dict[str, Any]
    output_dir: Path

    def __new__(cls, *args: Any, **kwargs: Any):
        """Refuse an unknown argument by name, before anything is loaded."""
        known = inspect.signature(cls.__init__).parameters
        for name in kwargs.keys() - known.keys():
            near = f" (did you mean {MEANT[name]!r}?)" if name in MEANT else ""
            raise TypeError(
                f"{cls.__name__} has no argument {name!r}{near or nearest_hint(name, known)}."
            )
        return super().__new__(cls)

    # --- the parts ---------------------------------------------------------------------------

    @property
    def model(self) -> PreTrainedModel | Any:
        """The policy as Transformers or PEFT know it."""
        return self.policy.model

    @property
    def ref_model(self) -> PreTrainedModel | None:
        """A reference model of its own; None where there is none, or it is the policy's base."""
        if self.reference is None or self.reference.model is self.policy.model:
            return None
        return self.reference.model

    @property
    def optimizer(self) -> Any:
        """The policy's; the critic has its own."""
        return self.policy_learner.optimizer

    @property
    def lr_scheduler(self) -> Any:
        return self.policy_learner.scheduler

    def is_world_process_zero(self) -> bool:
        """Whether this is the one process that writes."""
        return self.accelerator.is_main_process

    def is_local_process_zero(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.accelerator.is_local_main_process

    # --- evaluation --------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean rewards on held-out prompts at `eval_temperature`: "eval_reward", ...

        A dict of data sets gives the metrics of each: "eval_<name>_reward", ... The rollouts of
        the trainer's own eval_dataset, of the first one in a dict, are saved.
        """
        datasets = self.eval_dataset
        if eval_dataset is not None:
            datasets = self._prepare_evaluation(eval_dataset)
        if datasets is None:
            raise ValueError("There is no eval_dataset to evaluate on.")
        named = datasets if isinstance(datasets, dict) else {"": datasets}
        self.generator.load(self.policy)
        metrics: dict[str, float] = {}
        for name, dataset in named.items():
            is_saved = eval_dataset is None and not metrics  # always of the same prompts
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            metrics |= self._evaluate(dataset, prefix, self.policy if is_saved else None)
        return metrics

    def _evaluate(self, dataset: Any, prefix: str, policy: Network | None) -> dict[str, float]:
        params = replace(self.sampling_params, temperature=self.args.eval_temperature)
        given = (self.reward_functions, self.processing_class, self.args, policy, self.state)
        metrics, saved = evaluation.evaluate(dataset, self.generator, params, *given, prefix)
        self.run.log_evaluation(metrics, saved)
        return metrics

    def _prepare_evaluation(self, datasets: Any) -> Any:
        """One data set, or a dict of them by name."""
        if not isinstance(datasets, dict):
            return self._prepare(datasets, "eval_dataset")
        return {
            name: self._prepare(dataset, f"eval_dataset[{name!r}]")
            for name, dataset in datasets.items()
        }

    def _prepare(self, dataset: Any, name: str) -> Any:
        say = self.accelerator.print
        return prepare_split(dataset, name, self.processing_class, self.args, say)

    def _evaluate_and_save(self, step: int, epoch_ended: bool = False) -> None:
        """What is due behind a step, or behind the epoch that ends with it."""
        wanted = self.run.pace.wants_evaluation(step, epoch_ended)
        if wanted and self.eval_dataset is not None:
            self.run.note_best(self.evaluate())
        if self.run.wants_checkpoint(step, epoch_ended):
            self.save_checkpoint(step)

    # --- saving ------------------------------------------------------------------------------

    def save_checkpoint(self, step: int) -> Path:
        """Everything `train(resume_from_checkpoint=...)` needs to continue exactly."""
        return self.run.save_checkpoint(step, self._trained())

    def save_model(self, output_dir: str | os.PathLike | None = None) -> Path:
        """Policy (adapter or full), critic, tokenizer, configuration and model card."""
        return self.run.save_model(Path(output_dir or self.output_dir), self._saved())

    def push_to_hub(
        self,
        commit_message: str = "Upload SPO model",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | Sequence[str] = (),
    ) -> str | None:
        """Upload what `save_model` saved; returns the commit's address on the main process (a
        Future of it without `blocking`)."""
        if model_name or dataset_name or tags:
            self.create_model_card(model_name, dataset_name, tags)
        more = {"token": token, "revision": revision}
        more = {name: value for name, value in more.items() if value is not None}
        return self.run.push_to_hub(
            commit_message, more if blocking else more | {"run_as_future": True}
        )

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | Sequence[str] = (),
    ) -> None:
        """Write README.md in the run's folder; what is given stays for later ones."""
        given = {"title": model_name, "dataset": dataset_name, "tags": tags}
        self.run_details |= {name: value for name, value in given.items() if value}
        if self.is_world_process_zero():
            folder.replace_text(self.output_dir / "README.md", self._card())

    def save_state(self) -> None:
        """`state` with its history as trainer_state.json in the run's folder."""
        if self.is_world_process_zero():
            self.state.save_to_json(str(self.output_dir / "trainer_state.json"))
            folder.note_files(self.output_dir, ["trainer_state.json"])

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """As <split>_results.json and, combined, among those of all_results.json."""
        if not self.is_world_process_zero():
            return
        names = [f"{split}_results.json", *(["all_results.json"] if combined else [])]
        for name in names:
            path = self.output_dir / name
            before = (
                json.loads(path.read_text()) if name.startswith("all_") and path.exists() else {}
            )
            folder.replace_text(path, json.dumps(before | metrics, indent=4, sort_keys=True))
        folder.note_files(self.output_dir, names)

    def log_metrics(self, split: str, metrics: dict[str, float]) -> None:
        """Print them, one a line."""
        width = max((len(name) for name in metrics), default=0)
        rows = (f"  {name:<{width}} = {value:.6g}" for name, value in sorted(metrics.items()))
        self.accelerator.print("\n".join([f"***** {split} metrics *****", *rows]))

    def _finish(self) -> TrainOutput:
        """Behind the last step: the best weights, if they are asked for, saved and uploaded."""
        return self.run.end(self._trained(), self._saved)

    def _trained(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by network and position."""
        weights = enumerate(self.policy.trainable)
        return {f"policy.{i}": w.detach() for i, w in weights} | self.critic.state()

    def _saved(self) -> saving.Trained:
        """What the saved model is made of."""
        critic, judge = self.critic, self.processing_class
        return saving.Trained(self.policy, critic, judge, self.args, self._card())

    def _card(self) -> str:
        details = self.run_details | {"critic": self.critic.description}
        step, evaluations = self.state.global_step, self.run.reporter.evaluations
        return model_card(self.run.name, step, details, evaluations, self.args)

    # --- the state and the callbacks ---------------------------------------------------------

    @property
    def state(self) -> Any:
        """Transformers' TrainerState: global_step, epoch, log_history, best_metric, ..."""
        return self.run.state

    @property
    def control(self) -> Any:
        return self.run.control

    def log(self, logs: dict[str, float]) -> None:
        """Add numbers of your own to the history, metrics.jsonl and the trackers."""
        self.run.log(logs)

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Tell this one, too, what happens from now on."""
        self.run.callbacks.add(callback)

    def pop_callback(
        self, callback: TrainerCallback | type[TrainerCallback]
    ) -> TrainerCallback | None:
        """Take this callback, or the first of this class, out and return it."""
        return self.run.callbacks.pop(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """The same without returning it."""
        self.run.callbacks.pop(callback)
