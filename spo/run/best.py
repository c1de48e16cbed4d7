"""Metrics of an evaluation -> is this the best so far; the best checkpoint -> its weights."""

from pathlib import Path

from torch import Tensor
from transformers import TrainerState

from spo.config import SPOConfig
from spo.options import nearest_hint
from spo.run import checkpoint

PREFIX = "eval_"


def note_best(state: TrainerState, metrics: dict[str, float], args: SPOConfig) -> bool:
    """Compare `metric_for_best_model` with `state.best_metric` and keep the better one there.

    Raises:
        ValueError: there is no such metric.
    """
    if args.metric_for_best_model is None:
        return False
    name = PREFIX + args.metric_for_best_model
    if name not in metrics:
        names = [metric.removeprefix(PREFIX) for metric in metrics]
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} is not evaluated"
            f"{nearest_hint(args.metric_for_best_model, names)}; there are {', '.join(names)}."
        )
    value, best = metrics[name], state.best_metric
    if best is not None and (value <= best if args.greater_is_better else value >= best):
        return False
    state.best_metric, state.best_global_step = value, state.global_step
    return True


def remember(state: TrainerState, metric: float | None, step: int | None, output_dir: Path) -> None:
    """What a resumed run had found; its checkpoint, where it is still there."""
    state.best_metric, state.best_global_step, state.best_model_checkpoint = metric, step, None
    if step and checkpoint.read_state(path := checkpoint.path_of(output_dir, step)) is not None:
        state.best_model_checkpoint = str(path)


def load_best(state: TrainerState, weights: dict[str, Tensor]) -> str:
    """Put the weights of the best checkpoint into `weights`; returns what to tell a person."""
    path = Path(state.best_model_checkpoint)
    if state.best_global_step == state.global_step:
        return f"The last step is the best: {state.best_metric:.4g}."
    checkpoint.load_weights(path, weights)
    return f"Back to the best step: {state.best_metric:.4g} in {path}."
