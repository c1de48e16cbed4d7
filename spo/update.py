"""Rollouts and credit -> optimizer updates of policy and critic.

One update runs over its rows twice, once per network: all policy micro-batches forward and
backward, and all of the critic's. So the two graphs are never alive together, and under a shared
base the adapter is switched once per pass. Weights were fixed over the whole update beforehand, so
gradients just add up, over micro-batches and over processes.

Where the critic's targets do not depend on its values, its pass comes before credit is assigned:
one forward pass then gives both the values that credit is made of and the gradient.

Axes: B completions of the rollout batch, b rows of a micro-batch, T completion tokens.
"""

import warnings
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spo.advantages import Credit, monte_carlo_returns
from spo.checkpoints import save_offending_rows
from spo.losses import kl_k3, policy_loss, positive_nll, token_weights, value_loss
from spo.models import Network
from spo.rollouts import Rollouts
from spo.scoring import MicroBatch, TokenRows, hidden_states, token_logprobs, token_values

if TYPE_CHECKING:
    from spo.trainer import SPOTrainer


class NonFiniteLossError(RuntimeError):
    """A loss, or what it is made of, became NaN or infinite; nothing was updated with it."""


class Updater:
    """Carries the rollout batch through its optimizer updates and counts what happened."""

    def __init__(self, trainer: "SPOTrainer"):
        self.trainer = trainer
        self.args, self.accelerator = trainer.args, trainer.accelerator
        self.max_rows = self.args.per_device_train_batch_size
        self.max_tokens = self.args.max_tokens_per_micro_batch

    @property
    def critic_comes_first(self) -> bool:
        """Whether the critic's pass may come before credit: its targets are Monte Carlo returns,
        a rollout batch gives one update, and no dropout would show in the values."""
        args, critic = self.args, self.trainer.critic
        return (
            critic is not None
            and args.gamma == args.lam_critic == 1.0
            and args.updates_per_step(self.accelerator.num_processes) == 1
            and not any(isinstance(m, torch.nn.Dropout) and m.p for m in critic.model.modules())
        )

    def begin(self, step: int, rollouts: Rollouts) -> Rollouts:
        """Take up a scored rollout batch -> the same with all that goes into its values."""
        self._take_up(step, rollouts)
        self._check_finite()
        if not self.trainer.has_critic:
            return rollouts
        if self.trainer.path_value is not None:
            self.path_values = self.trainer.path_value.predict(rollouts)
        if self.critic_comes_first:
            self._train_critic_first()
        if self.trainer.critic is not None:
            self.network_values = self.rollouts.token_values
        values = self.network_values + self.path_values
        self.rollouts = replace(self.rollouts, token_values=values)
        return self.rollouts

    def run(self, credit: Credit) -> dict[str, float]:
        """Every optimizer update of the batch taken up -> means over them."""
        args, step, rollouts = self.args, self.step, self.rollouts
        self.credit = credit
        if credit.token_returns is not None:
            self.targets = credit.token_returns - self.path_values
        size = args.update_batch_size(self.accelerator.num_processes)
        for iteration in range(args.num_iterations):
            order = np.arange(len(rollouts))
            if len(order) > size:
                order = np.random.default_rng([args.seed, step, iteration]).permutation(order)
            for rows in order.reshape(-1, size):
                self._optimizer_update(rows)
        self._fit_path_value()
        return self._metrics()

    def _check_finite(self) -> None:
        """Stop before any credit is assigned where a network says NaN or infinity."""
        for name in ("token_entropies", "token_logprobs_old", "token_logprobs_ref", "token_values"):
            numbers = getattr(self.rollouts, name)
            rows = () if numbers is None else np.flatnonzero(~np.isfinite(numbers).all(1))
            if len(rows):
                self._stop(f"{name} of {len(rows)} completions is not finite", rows)

    def _take_up(self, step: int, rollouts: Rollouts) -> None:
        self.mask = rollouts.loss_mask(self.args.mask_truncated_completions)
        self.step, self.rollouts = step, rollouts
        uncut = np.where(rollouts.completion_mask, 0, -1)
        self.credit = Credit(uncut, np.zeros(uncut.shape, np.float32), None)
        self.token_rows = TokenRows(
            rollouts.prompt_ids, rollouts.ragged_token_ids, self.args.share_prompts
        )
        self.path_values = self.network_values = np.zeros(self.mask.shape, np.float32)
        self.sums: dict[str, float] = defaultdict(float)
        self.num_updates = 0
        self.num_policy_updates = 0
        self.norms: dict[str, float] = {}

    def _mine(self, rows: np.ndarray) -> np.ndarray:
        """This process's share of the rows, of about as many tokens as any other's."""
        longest_first = rows[np.argsort(-self.token_rows.total_lengths[rows], kind="stable")]
        return longest_first[self.accelerator.process_index :: self.accelerator.num_processes]

    def _weights(self, rows: np.ndarray, loss_type: str) -> np.ndarray:
        """Weight of every token of the batch in an update on the given rows, (B, T) float32."""
        weights = np.zeros(self.mask.shape, np.float32)
        weights[rows] = token_weights(self.mask[rows], loss_type, self.args.max_completion_length)
        return weights

    def _train_critic_first(self) -> None:
        """The critic's pass over all rows, also those outside the loss: they have values, too.

        Its gradient waits in the parameters for the step of the optimizer.
        """
        self.targets = monte_carlo_returns(self.rollouts, self.args) - self.path_values
        rows = np.arange(len(self.rollouts))
        self.value_weights = self._weights(rows, "dapo")
        self.values = np.zeros(self.mask.shape, np.float32)
        with_tokens = rows[self.rollouts.lengths > 0]
        self._accumulate(self.trainer.critic, self._mine(with_tokens), self._first_value_loss)
        values = torch.from_numpy(self.values).to(self.accelerator.device)
        values = self.accelerator.reduce(values, "sum").cpu().numpy()
        self.rollouts = replace(self.rollouts, token_values=values)

    def _optimizer_update(self, rows: np.ndarray) -> None:
        """One step of the optimizer on the given rows (U of them, over all processes)."""
        trainer = self.trainer
        self.rows = rows[self.mask[rows].any(1)]
        mine = self._mine(self.rows)
        self.weights = self._weights(rows, self.args.loss_type)
        self.value_weights = self._weights(rows, "dapo")

        updated = {}
        if self.step > self.args.value_warmup_steps or not trainer.has_critic:
            self._accumulate(trainer.policy, mine, self._policy_loss)
            updated["grad_norm"] = (trainer.policy, self.args.max_grad_norm)
            self.num_policy_updates += 1
        if trainer.critic is not None:
            if not self.critic_comes_first:
                self._accumulate(trainer.critic, mine, self._value_loss)
            updated["spo/value_grad_norm"] = (trainer.critic, self.args.value_max_grad_norm)
        self._step(updated)

    def _metrics(self) -> dict[str, float]:
        """Means over the batch's updates, the same on every process; gradient norms and learning
        rates are the last one's."""
        names = ["policy_loss", "value_loss", "clipped", "approx_kl", "policy_tokens"]
        sums = torch.tensor(
            [self.sums[name] for name in names],
            dtype=torch.float64 if self.accelerator.device.type != "mps" else torch.float32,
            device=self.accelerator.device,
        )
        sums = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
        metrics = dict(self.norms)
        if self.num_policy_updates:
            tokens = max(sums["policy_tokens"], 1)
            metrics["spo/policy_loss"] = sums["policy_loss"] / self.num_policy_updates
            metrics["spo/clip_fraction"] = sums["clipped"] / tokens
            metrics["spo/approx_kl"] = sums["approx_kl"] / tokens
        if self.trainer.critic is not None:
            metrics["spo/value_loss"] = sums["value_loss"] / self.num_updates
        metrics["learning_rate"] = self.rates[0]
        if len(self.rates) > 1:
            metrics["spo/value_learning_rate"] = self.rates[1]
        return metrics

    # --- one network over its micro-batches --------------------------------------------------

    def _accumulate(self, network: Network, rows: np.ndarray, loss_of) -> None:
        """Add the gradient of Σ loss over the rows; out of memory: start over with smaller ones."""
        while True:
            before = dict(self.sums)
            try:
                return self._pass(network, rows, loss_of)
            except torch.OutOfMemoryError:
                if not self._shrink(rows):
                    raise
            for parameter in network.parameters:
                parameter.grad = None
            self.sums = defaultdict(float, before)
            torch.cuda.empty_cache()

    def _pass(self, network: Network, rows: np.ndarray, loss_of) -> None:
        network.train(True)
        with network.active() as decoder:
            for batch in self.token_rows.micro_batches(
                rows, self.max_rows, self.max_tokens, self.accelerator.device
            ):
                with self.accelerator.autocast():
                    loss = loss_of(network, hidden_states(decoder, batch), batch)
                if not torch.isfinite(loss):
                    self._stop(f"the loss is {loss.item()}", batch.rows)
                self.accelerator.backward(loss)

    def _shrink(self, rows: np.ndarray) -> bool:
        """Halve the token budget of a micro-batch; False when one row is all there is."""
        longest = int(self.token_rows.total_lengths[rows].max())
        budget = self.max_tokens or longest * min(self.max_rows, len(rows))
        if budget <= longest:
            return False
        self.max_tokens = max(budget // 2, longest)
        warnings.warn(
            f"Out of memory at {budget} tokens per micro-batch; going on with {self.max_tokens}. "
            f"Set max_tokens_per_micro_batch={self.max_tokens} to start there.",
            stacklevel=2,
        )
        return True

    def _stop(self, what: str, rows: np.ndarray) -> None:
        path = save_offending_rows(self.trainer, self.rollouts, self.credit, rows, self.step)
        raise NonFiniteLossError(
            f"Step {self.step}: {what}; nothing was updated, the rows are in "
            f"{path} and the last checkpoint is intact. Lower the learning rate."
        )

    # --- the two losses ----------------------------------------------------------------------

    def _rows(self, array: np.ndarray, batch: MicroBatch, num_columns: int) -> Tensor:
        """The micro-batch's part of a (B, T) array, on the device."""
        return torch.from_numpy(array[batch.rows, :num_columns]).to(self.accelerator.device)

    def _policy_loss(self, network: Network, states: Tensor, batch: MicroBatch) -> Tensor:
        args, rollouts, credit = self.args, self.rollouts, self.credit
        flat = token_logprobs(
            states, network.head, batch.targets, args.temperature, args.logits_chunk_size
        )
        logprobs = batch.to_rows(flat)
        width = logprobs.shape[1]
        old = self._rows(rollouts.token_logprobs_old, batch, width)
        weights = self._rows(self.weights, batch, width)
        reference = rollouts.token_logprobs_ref
        result = policy_loss(
            logprobs,
            old,
            self._rows(credit.token_advantages, batch, width),
            weights,
            self._rows(credit.segment_ids, batch, width),
            epsilon=args.epsilon,
            epsilon_high=args.epsilon_high,
            delta=args.delta,
            importance_sampling_level=args.importance_sampling_level,
            token_logprobs_ref=None if reference is None else self._rows(reference, batch, width),
            beta=0.0 if args.kl_in_reward else args.beta,
        )
        loss, mask = result.loss, weights > 0
        if args.positive_nll_coef:
            rewards = torch.from_numpy(rollouts.completion_rewards[batch.rows]).to(weights.device)
            loss = loss + args.positive_nll_coef * positive_nll(logprobs, rewards, weights)
        self.sums["policy_loss"] += loss.item()
        self.sums["policy_tokens"] += mask.sum().item()
        self.sums["clipped"] += result.clipped.sum().item()
        self.sums["approx_kl"] += kl_k3(old, logprobs.detach())[mask].sum().item()
        return loss

    def _value_loss(self, network: Network, states: Tensor, batch: MicroBatch) -> Tensor:
        values = batch.to_rows(token_values(network.head, states))
        old = self._rows(self.network_values, batch, values.shape[1])
        return self._loss_of_values(values, old, batch)

    def _first_value_loss(self, network: Network, states: Tensor, batch: MicroBatch) -> Tensor:
        """Its values are the rollout's: nothing is clipped yet."""
        values = batch.to_rows(token_values(network.head, states))
        self.values[batch.rows, : values.shape[1]] = values.detach().cpu().numpy()
        bad = batch.rows[~np.isfinite(self.values[batch.rows]).all(1)]
        if len(bad):
            self._stop(f"token_values of {len(bad)} completions is not finite", bad)
        return self._loss_of_values(values, values.detach(), batch)

    def _loss_of_values(self, values: Tensor, old: Tensor, batch: MicroBatch) -> Tensor:
        width = values.shape[1]
        targets = self._rows(self.targets, batch, width)
        weights = self._rows(self.value_weights, batch, width)
        loss = value_loss(values, targets, old, weights, self.args.cliprange_value)
        self.sums["value_loss"] += loss.item()
        return self.args.vf_coef * loss

    def _fit_path_value(self) -> None:
        """Fit what the network leaves of the returns to the path's features."""
        if self.trainer.path_value is not None:
            targets = self.credit.token_returns - self.network_values
            self.trainer.path_value.fit(self.rollouts, targets, self.mask)

    # --- the step ----------------------------------------------------------------------------

    def _step(self, updated: dict[str, tuple[Network, float]]) -> None:
        """Add up gradients over processes, clip each network by itself, step both."""
        for network, _ in updated.values():
            self._sum_over_processes(network)
        self.accelerator.unscale_gradients()
        for name, (network, limit) in updated.items():
            norm = torch.nn.utils.clip_grad_norm_(network.parameters, limit or float("inf"))
            self.norms[name] = norm.item()
            if not norm.isfinite() and self.accelerator.scaler is None:  # a scaler skips the step
                self._stop(f"the gradient norm is {norm.item()}", self.rows)
        optimizer, scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
        self.rates = [group["lr"] for group in optimizer.param_groups]
        trained = (p for group in optimizer.param_groups for p in group["params"])
        if self.accelerator.scaler is None or any(p.grad is not None for p in trained):
            optimizer.step()  # a loss scaler refuses one without gradients
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1

    def _sum_over_processes(self, network: Network) -> None:
        if self.accelerator.num_processes == 1 or len(self.rows) == 0:
            return
        for parameter in network.parameters:
            if parameter.grad is None:  # this process had no rows
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
