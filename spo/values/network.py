"""A trained network as a value source.

Axes: B completions of the rollout batch, b rows of a micro-batch, T completion tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spo.config import SPOConfig
from spo.errors import NonFiniteLossError
from spo.learner import Learner, LossOf, Step, minibatches, sequences_of, totals
from spo.losses import token_weights, value_loss
from spo.networks.batching import MicroBatch, Sequences
from spo.rollouts import Rollouts, pad_rows
from spo.scoring import score_shared


class NetworkValue:
    """The value head on a decoder's states, trained by gradient steps."""

    name = "network"

    def __init__(
        self,
        learner: Learner,
        args: SPOConfig,
        prompts_of: Callable[[Rollouts], list[list[int]]] = attrgetter("prompt_ids"),
    ):
        """`prompts_of`: what it reads before the completions, a reference perhaps."""
        self.learner, self.args, self.accelerator = learner, args, learner.accelerator
        self.share_prompts = args.share_prompts and learner.network.can_share_prompts
        self.prompts_of = prompts_of

    @property
    def fits_while_reading(self) -> bool:
        """Whether one pass may read values and train: the targets are Monte Carlo returns, a
        rollout batch gives one step, and no dropout would show in the values."""
        args = self.args
        return (
            args.gamma == args.lam_critic == 1.0
            and args.updates_per_step(self.accelerator.num_processes) == 1
            and not self.learner.network.has_dropout
        )

    def predict(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T"]:
        """One pass without gradient, each process doing its share of the rows."""
        prompt_ids, token_ids = self.prompts_of(rollouts), rollouts.ragged_token_ids
        args = self.args
        (rows,) = score_shared(self.learner.network, "values", prompt_ids, token_ids, args)
        return pad_rows(rows, rollouts.completion_mask).astype(np.float32)

    def predict_and_fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> tuple[Float[np.ndarray, "B T"], dict[str, float]]:
        """The values before a step and the step itself, in one pass over all rows: those outside
        the loss have values as well."""
        sequences = self._sequences(rollouts)
        weights = token_weights(mask, "dapo", self.args.max_completion_length)
        weights = weights.astype(np.float32)
        step = self.learner.step(
            sequences,
            np.flatnonzero(rollouts.lengths),
            self._loss_of(targets, None, weights),
            learn=bool(mask.any()),
            keep_outputs=True,
        )
        return self._of_all_processes(step.outputs, rollouts), self._metrics([step])

    def fit(
        self,
        rollouts: Rollouts,
        targets: Float[np.ndarray, "B T"],
        mask: Bool[np.ndarray, "B T"],
    ) -> dict[str, float]:
        """Every optimizer step of one rollout batch."""
        sequences, steps = self._sequences(rollouts), []
        old = rollouts.values_by_source[self.name]
        processes = self.accelerator.num_processes
        for rows in minibatches(len(rollouts), rollouts.step, self.args, processes):
            weights = np.zeros(mask.shape, np.float32)
            weights[rows] = token_weights(mask[rows], "dapo", self.args.max_completion_length)
            loss_of = self._loss_of(targets, old, weights)
            steps.append(self.learner.step(sequences, rows[mask[rows].any(1)], loss_of))
        return self._metrics(steps)

    def state(self) -> dict[str, Tensor]:
        """The trained weights by position; the optimizer's state is saved by Accelerate."""
        weights = enumerate(self.learner.network.trainable)
        return {str(i): weight.detach() for i, weight in weights}

    def _sequences(self, rollouts: Rollouts) -> Sequences:
        read = replace(rollouts, prompt_ids=self.prompts_of(rollouts))
        return sequences_of(read, self.share_prompts)

    def _loss_of(self, targets: np.ndarray, old: np.ndarray | None, weights: np.ndarray) -> LossOf:
        """½ (V − target)², clipped around the `old` values; None: the ones it computes."""
        args = self.args

        def loss_of(token_values: Tensor, batch: MicroBatch):
            def part(array):
                return torch.from_numpy(array[batch.rows, : batch.width]).to(token_values.device)

            finite = torch.isfinite(token_values).all(1).cpu().numpy()
            if not finite.all():
                bad = batch.rows[~finite]
                raise NonFiniteLossError(
                    f"token_values of {len(bad)} completions is not finite", bad
                )
            token_values_old = token_values.detach() if old is None else part(old)
            loss, sums = value_loss(
                token_values, part(targets), token_values_old, part(weights), args.cliprange_value
            )
            return args.vf_coef * loss, sums

        return loss_of

    def _of_all_processes(self, rows: dict[int, np.ndarray], rollouts: Rollouts):
        """This process's rows -> those of all, padded with zeros, (B, T)."""
        values = np.zeros(rollouts.completion_mask.shape, np.float32)
        for row, numbers in rows.items():
            values[row, : len(numbers)] = numbers
        tensor = torch.from_numpy(values).to(self.accelerator.device)
        return self.accelerator.reduce(tensor, "sum").cpu().numpy()

    def _metrics(self, steps: list[Step]) -> dict[str, float]:
        """Mean loss over the steps; gradient norm and learning rate are the last one's."""
        (loss,) = totals(steps, ("value_loss",), self.accelerator)
        return {
            "spo/value_loss": loss / len(steps),
            "spo/value_grad_norm": steps[-1].grad_norm,
            "spo/value_learning_rate": steps[-1].learning_rate,
        }
