"""One run: its folder, its callbacks, its reports, its checkpoints, its end.

begin -> (begin_step, log_step, save_rollouts, save_checkpoint, stop_if_asked) of every step -> end
"""

import contextlib
import math
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput

from spo.config import SPOConfig
from spo.errors import NonFiniteLossError, RunFolderError, SaveError
from spo.rollouts import Credit, Rollouts, save_rollouts
from spo.run import best, checkpoint, folder, identity, index, saving
from spo.run.callbacks import Callbacks
from spo.run.pace import Pace, is_due
from spo.run.reporter import Reporter
from spo.run.summary import Summary


class Run:
    """What happens around the algorithm.

    Attributes:
        output_dir: the run's folder; `name` is what trackers, rollouts and the card call it.
        state, control: Transformers' TrainerState and TrainerControl.
        identity: what a checkpoint must agree with besides the settings.
        trouble: what this process could not write in this step.
    """

    def __init__(self, args: SPOConfig, accelerator: Accelerator, output_dir: Path, max_steps: int):
        self.args, self.accelerator, self.output_dir = args, accelerator, output_dir
        self.name, self.max_steps = args.run_name or output_dir.name, max_steps
        self.run_id = broadcast_object_list([folder.read_run(output_dir).get("run_id")])[0]
        self.state = TrainerState(
            max_steps=max_steps,
            num_train_epochs=math.ceil(args.num_train_epochs),
            train_batch_size=args.per_device_train_batch_size,
            is_local_process_zero=accelerator.is_local_main_process,
            is_world_process_zero=accelerator.is_main_process,
        )
        self.reporter = Reporter(args, accelerator, output_dir, max_steps)
        self.pace = Pace(args, accelerator, self.state)
        self.control, self.signals = self.pace.control, self.pace.signals
        self.identity: dict[str, Any] = {}
        self.repo_id: str | None = None
        self.trouble: str | None = None

    def listen(self, callbacks: Sequence[Any], **handed: Any) -> None:
        """Tell these callbacks what happens, with `handed` by keyword at every event."""
        self.callbacks = Callbacks(callbacks, self.args, self.state, self.control, handed)
        self.callbacks.watch(handed["optimizer"])

    def begin(self, resume_from_checkpoint: str | bool | None, weights: dict[str, Any]) -> int:
        """Restore a checkpoint into `weights`, if asked for; returns the steps already done."""
        resume = resume_from_checkpoint or self.args.resume_from_checkpoint
        if not resume and self.state.global_step:
            raise RunFolderError(
                f"train() has done {self.state.global_step} steps already and used up its "
                "schedule; make a new SPOTrainer of the saved model, or raise max_steps there and "
                "train with resume_from_checkpoint='latest'."
            )
        if not resume and checkpoint.checkpoints_in(self.output_dir):
            folder.refuse_another_run(self.output_dir)
        path = self._on_main(lambda: self._checkpoint_to_resume(resume)) if resume else None
        start = self._restore(path, weights) if path is not None else 0
        self.state.global_step = start
        self.pace.begin(start)
        self._on_main(lambda: self._clear_folder(anew=bool(resume) and path is None))
        self.state.log_history = self.reporter.begin(start, resumed=path is not None)
        self.summary = Summary()
        self.callbacks.call("on_train_begin")
        return start

    def begin_step(self) -> None:
        """Of the loop, and of an epoch where the one before has ended."""
        if self.pace.epoch_over:
            self.callbacks.call("on_epoch_begin")
        self.pace.begin_step()
        self.callbacks.call("on_step_begin")

    def _checkpoint_to_resume(self, resume: str | bool) -> Path | None:
        output_dir, run_id = self.output_dir, self.run_id
        checkpoint.remove_unfinished(output_dir)
        if not checkpoint.numbered(output_dir) and not self.args.output_dir:
            output_dir, run_id = folder.newest_run() or output_dir, None
        path, said = checkpoint.choose(output_dir, resume, run_id)
        if said:
            self.reporter.print(said)
        return path

    def _restore(self, path: Path, weights: dict[str, Any]) -> int:
        saved = checkpoint.read_state(path)
        if saved["step"] > self.max_steps:
            raise RunFolderError(
                f"{path} has done {saved['step']} steps, more than max_steps={self.max_steps}; "
                "raise it, or start a new run from the saved model."
            )
        refused, honoured, retune = identity.changes(saved, self.args, self.identity)
        if refused:
            raise RunFolderError(
                f"{path} cannot be continued with other settings: {'; '.join(refused)}. Resume "
                "with those it was written with, or start a new run from its model."
            )
        checkpoint.restore_checkpoint(self.accelerator, path, weights, retune)
        best.remember(self.state, *saved.get("best", (None, None)), path.parent)
        if honoured:
            self.reporter.print(f"From step {saved['step']} on: {'; '.join(honoured)}.")
        return saved["step"]

    def _clear_folder(self, anew: bool) -> None:
        if anew:
            folder.begin_anew(self.output_dir)
        folder.remove_unfinished(self.output_dir)
        limit, best_step = self.args.save_total_limit, self.state.best_global_step
        checkpoint.delete_old(self.output_dir, self.run_id, limit, best_step)
        folder.write_config(self.output_dir, self.args)
        folder.write_run(self.output_dir, finished=False)

    def _on_main(self, act: Callable[[], Any]) -> Any:
        """What the main process finds, or the one sentence it fails with, on all processes."""
        answer: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                answer[0] = act()
            except ValueError as error:
                answer[1] = str(error)
            except OSError as error:
                answer[1] = f"{error.filename or self.output_dir}: {error.strerror}."
        found, refusal = broadcast_object_list(answer)
        if refusal:
            raise RunFolderError(refusal)
        return found

    def prepare_saving(self, trained: saving.Trained) -> None:
        """Try everything that saving needs, while there is nothing to lose yet."""

        def attempt() -> tuple[str, str | None]:
            mended = saving.try_saving(self.output_dir, trained)
            pushed = self.args.push_to_hub
            return mended, saving.create_repo(self.output_dir, self.args) if pushed else None

        mended, self.repo_id = self._on_main(attempt)
        if mended:
            self.reporter.print(mended)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """A failure to write is told when all processes can stop together."""
        try:
            yield
        except OSError as error:
            self.trouble = f"{what} could not be written: {error.strerror or error}"

    def log_step(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """A step is finished: its metrics to everybody who listens, where they are due."""
        self.pace.finish_step(step, epoch)
        self.summary.add(metrics)
        self.callbacks.call("on_step_end")
        due = self.pace.wants_log(step)
        with self._writing("metrics"):
            self.reporter.log_step(step, epoch, metrics, due)
        if due:
            self._tell(metrics)

    def log(self, metrics: dict[str, Any]) -> None:
        """What somebody else has to say about this step."""
        with self._writing("metrics"):
            self.reporter.write(self.state.global_step, metrics)
        self._tell(metrics)

    def _tell(self, metrics: dict[str, Any]) -> None:
        """The history and the callbacks."""
        now = {"step": self.state.global_step, "epoch": self.state.epoch}
        self.state.log_history.append(now | metrics)
        self.callbacks.call("on_log", logs=metrics)

    def log_evaluation(
        self, metrics: dict[str, float], saved: tuple[Rollouts, Credit] | None = None
    ) -> None:
        """`saved`: its rollouts, for a file beside the steps', under the number of the last one."""
        step = self.state.global_step
        with self._writing("metrics"):
            self.reporter.log_eval(step, metrics)
        if saved is not None and self.args.save_rollouts_steps:
            rollouts, credit = saved
            # without values lambda decides nothing, and "auto" is no number
            settings = replace(self.args, lam=1.0) if self.args.lam == "auto" else self.args
            self._write_rollouts(replace(rollouts, step=step), credit, settings, evaluation=True)
        self._tell(metrics)
        self.callbacks.call("on_evaluate", metrics=metrics)

    def note_best(self, metrics: dict[str, float]) -> None:
        """Whether this evaluation of the loop is the best so far."""
        self.pace.new_best = best.note_best(self.state, metrics, self.args)

    def save_rollouts(self, rollouts: Rollouts, credit: Credit, settings: SPOConfig) -> None:
        """The Parquet file of a step, every `save_rollouts_steps`; `settings`: of its credit."""
        if is_due(rollouts.step, self.args.save_rollouts_steps):
            self._write_rollouts(rollouts, credit, settings)

    def _write_rollouts(
        self, rollouts: Rollouts, credit: Credit, settings: SPOConfig, evaluation: bool = False
    ) -> None:
        if self.accelerator.is_main_process:
            name = f"{'eval-' if evaluation else ''}step-{rollouts.step:06d}.parquet"
            path = self.output_dir / "rollouts" / name
            with self._writing("rollouts"):
                save_rollouts(rollouts, path, credit, settings, self.name)
                index.append(rollouts, credit, path.parent, evaluation)

    def save_checkpoint(self, step: int, weights: dict[str, torch.Tensor]) -> Path:
        """Whole or not at all; what went wrong is said with what is safe."""
        state = {
            "step": step,
            "world_size": self.accelerator.num_processes,
            "run_id": self.run_id,
            "asked": self.pace.asked_to_save,
            "config": self.args.to_dict(),
            "identity": self.identity,
            "best": [self.state.best_metric, self.state.best_global_step],
        }
        self.pace.asked_to_save = True  # by a caller, unless the loop says otherwise
        try:
            checkpoint.check_finite(self.accelerator, weights)
            limits = (self.args.save_total_limit, self.state.best_global_step)
            path = checkpoint.save_checkpoint(
                self.accelerator, self.output_dir, weights, state, *limits
            )
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f"Step {step}: {error}; it was not saved, {self._safe()}. Lower the learning rate.",
                error.rows,
            ) from error
        except SaveError as error:
            raise SaveError(f"Step {step}: {error}; {self._advice(weights)}") from error
        self.pace.saved(step)
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(path)
        self.callbacks.call("on_save")
        return path

    def save_finished(self, weights: dict[str, torch.Tensor]) -> None:
        """Where a reward function or an engine ends the run: the steps it had done. With several
        processes the others are waiting elsewhere, and the last checkpoint has to do."""
        step = self.state.global_step
        if step > self.pace.saved_step and self.accelerator.num_processes == 1:
            self.pace.asked_to_save = False
            self.reporter.print(f"Step {step} is saved in {self.save_checkpoint(step, weights)}.")

    def _safe(self) -> str:
        good = checkpoint.last_good(self.output_dir, self.run_id)
        return f"the last checkpoint is intact: {good}" if good else "there is no checkpoint"

    def _advice(self, weights: dict[str, torch.Tensor]) -> str:
        """What is safe and what to do where something cannot be written."""
        needed = checkpoint.size_of(self.accelerator, weights) / 2**20
        try:
            free = f"{shutil.disk_usage(self.output_dir).free / 2**20:,.0f} MiB are free"
        except OSError as error:
            free = str(error.strerror)
        return (
            f"{self._safe()}. A checkpoint takes {needed:,.0f} MiB, in {self.output_dir} {free}: "
            "make room or make it writable, and go on with --resume_from_checkpoint latest."
        )

    def wants_checkpoint(self, step: int, epoch_ended: bool = False) -> bool:
        """As the run's pace says, and where its folder is gone."""
        if self.accelerator.is_main_process and not folder.read_run(self.output_dir):
            self.trouble = f"{self.output_dir} was moved or deleted"
        return self.pace.wants_checkpoint(step, self.trouble is not None, epoch_ended)

    def ends_epoch(self) -> bool:
        """Whether an epoch is over behind this step; callbacks are told."""
        if ended := self.pace.ends_epoch():
            self.callbacks.call("on_epoch_end")
        return ended

    def stop_if_asked(self, weights: dict[str, torch.Tensor]) -> None:
        """End here, with what is needed to go on, at a signal or where something is not written.

        Raises:
            SystemExit: 128 + the signal's number, as a shell reports it.
            SaveError: metrics or rollouts could not be written.
        """
        try:
            checkpoint.together(self.accelerator, self.trouble)
        except SaveError as error:
            raise SaveError(
                f"Step {self.state.global_step}: {error}; {self._advice(weights)}"
            ) from None
        if self.pace.stop_signal:
            number, step = self.pace.stop_signal, self.state.global_step
            self.reporter.print(
                f"{signal.Signals(number).name}: step {step} is finished and saved in "
                f"{self.output_dir / f'checkpoint-{step:06d}'}; go on with "
                "--resume_from_checkpoint auto."
            )
            self.reporter.end()
            raise SystemExit(128 + number)

    def save_model(self, path: Path, trained: saving.Trained) -> Path:
        """The model in `path`.

        Raises:
            NonFiniteLossError: it is broken, and nothing was written.
            SaveError: it could not be written.
        """
        networks = {"policy": trained.policy, "critic": trained.critic.network}
        weights = {
            f"{name}.{i}": weight
            for name, network in networks.items()
            for i, weight in enumerate(network.trainable if network is not None else ())
        }
        try:
            checkpoint.check_finite(self.accelerator, weights)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error}; no model was saved, {self._safe()}.", []) from error
        trouble, states = None, saving.whole_states(trained)
        if self.accelerator.is_main_process:
            try:
                saving.save_model(path, trained, states)
            except saving.ERRORS as error:
                trouble = f"The model could not be saved in {path}: {' '.join(str(error).split())}"
        checkpoint.together(self.accelerator, trouble)
        return path

    def push_to_hub(self, commit_message: str, more: dict[str, Any] | None = None) -> str | None:
        """Upload what was saved; the commit's address on the main process."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return None
        self.repo_id = self.repo_id or saving.create_repo(self.output_dir, self.args)
        self.callbacks.call("on_push_begin")
        return saving.upload(self.output_dir, self.repo_id, commit_message, more or {})

    def end(
        self, weights: dict[str, torch.Tensor], trained: Callable[[], saving.Trained]
    ) -> TrainOutput:
        """Save and upload; weights that cannot be saved as a model are kept in a checkpoint."""
        size = self.args.rollout_batch_size(self.accelerator.num_processes)
        output = self.summary.output(self.state.global_step, size)
        self._tell({k: v for k, v in output.metrics.items() if k.startswith("train_")})
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self.reporter.print(best.load_best(self.state, weights))
        self.reporter.end()
        try:
            self.save_model(self.output_dir, trained())
        except SaveError as error:
            path = self.save_checkpoint(self.state.global_step, weights)
            raise SaveError(f"{error}; nothing is lost, its weights are in {path}.") from error
        if self.accelerator.is_main_process:
            folder.write_run(self.output_dir, finished=True)
        if self.args.push_to_hub:
            self._push_at_the_end()
        self.callbacks.call("on_train_end")
        return output

    def _push_at_the_end(self) -> None:
        try:
            self.push_to_hub("Upload SPO model")
        except saving.HUB_ERRORS as error:
            raise SaveError(
                f"The model is saved in {self.output_dir}, and the upload failed: "
                f"{' '.join(str(error).split())}; repeat it with trainer.push_to_hub() or "
                f"`hf upload {self.repo_id} {self.output_dir}`."
            ) from error

    def explain(
        self, error: NonFiniteLossError, rollouts: Rollouts, credit: Credit | None
    ) -> NonFiniteLossError:
        """The error with what a person can do; its rows are saved for a look at them."""
        name = f"non-finite-step-{rollouts.step:06d}-process-{self.accelerator.process_index}"
        path = folder.save_offending_rows(
            rollouts, credit, error.rows, self.output_dir / f"{name}.parquet", self.args, self.name
        )
        return NonFiniteLossError(
            f"Step {rollouts.step}: {error}; nothing was updated with it, the rows are in {path} "
            f"and {self._safe()}. Lower the learning rate.",
            error.rows,
        )
