"""One network and its optimizer: rows of a rollout batch and a loss -> one optimizer step.

A step runs over its rows in micro-batches, forward and backward. Token weights are fixed over the
whole step beforehand, so gradients just add up, over micro-batches and over processes.

Axes: B completions of the rollout batch, b rows of a micro-batch, T completion tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from spo.config import SPOConfig
from spo.devices import widest_float
from spo.errors import NonFiniteLossError
from spo.losses import Sums
from spo.networks.batching import MicroBatch, Sequences
from spo.networks.network import Network
from spo.networks.room import MicroBatchSize
from spo.networks.sharding import DTensor, keep_whole_state, whole
from spo.optimizers import build_optimizer, build_scheduler
from spo.rollouts import Rollouts

LossOf = Callable[[Tensor, MicroBatch], tuple[Tensor, Sums]]
"""(what the network says of a micro-batch, (b, T); the micro-batch) -> loss and sums."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did.

    Attributes:
        learning_rate: that it was taken with.
        grad_norm: before clipping; 0 where there was nothing to learn.
        sums: of the loss, one entry per micro-batch of this process.
        outputs: what the network said of this process's rows before the step, by row, (T,) each;
            empty unless they are kept.
    """

    learning_rate: float
    grad_norm: float = 0.0
    sums: list[Sums] = field(default_factory=list)
    outputs: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass
class Learner:
    """Trains one network.

    Attributes:
        want: what its loss is made of.
        optimizer, scheduler: of this network alone, prepared by Accelerate.
        max_grad_norm: of its gradient; 0: not clipped.
    """

    network: Network
    want: Literal["logprobs", "values"]
    optimizer: torch.optim.Optimizer
    scheduler: Any
    accelerator: Accelerator
    max_grad_norm: float
    size: MicroBatchSize

    def step(
        self,
        sequences: Sequences,
        rows: np.ndarray,
        loss_of: LossOf,
        *,
        learn: bool = True,
        keep_outputs: bool = False,
    ) -> Step:
        """Forward and backward over the given rows (of all processes), then one optimizer step.

        With `learn` False the network is not touched, not even by the optimizer's momentum; the
        schedule goes on.
        """
        mine = shares_of(rows, sequences, self.accelerator)[self.accelerator.process_index]
        idle = self._idle_passes(sequences, rows)
        sums, outputs = self._accumulate(sequences, mine, idle, loss_of, keep_outputs)
        norm = self._apply(rows) if learn and len(rows) else self._hold()
        return self._advance(norm, sums, outputs)

    def skip(self) -> Step:
        """Take no step; the schedule goes on."""
        return self._advance(self._hold(), [], {})

    def _hold(self) -> float:
        """Leave the network as it is, whatever the optimizer's momentum; returns a norm of 0."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.accelerator.scaler is None:  # which refuses a step without gradients
            self.optimizer.step()  # moves nothing; PyTorch wants one before the schedule's
        return 0.0

    def _advance(self, norm: float, sums: list[Sums], outputs: dict[int, np.ndarray]) -> Step:
        self.optimizer.zero_grad(set_to_none=True)
        rate = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        return Step(rate, norm, sums, outputs)

    def _idle_passes(self, sequences: Sequences, rows: np.ndarray) -> list[MicroBatch]:
        """What this process runs with weight 0 where weights are sharded and others still have
        rows: they all gather weights, or none can."""
        if self.network.sharded is None or not len(rows):
            return []
        limits = (self.size.max_rows, self.size.max_tokens)
        shares = shares_of(rows, sequences, self.accelerator)
        counts = [len(sequences.split(share, *limits)) for share in shares]
        shortest = rows[[sequences.total_lengths[rows].argmin()]]
        missing = max(counts) - counts[self.accelerator.process_index]
        return [*sequences.micro_batches(shortest, *limits, self.network.device)] * missing

    def _accumulate(
        self,
        sequences: Sequences,
        rows: np.ndarray,
        idle: list[MicroBatch],
        loss_of: LossOf,
        keep: bool,
    ):
        """Add the gradient of Σ loss over the rows; out of memory: start over with smaller ones."""
        while True:
            try:
                return self._pass(sequences, rows, idle, loss_of, keep)
            except torch.OutOfMemoryError as error:
                lengths = sequences.total_lengths[rows]
                if self.network.sharded is not None:
                    raise self.size.too_large(lengths) from error
                if not self.size.shrink(lengths):
                    raise
            for parameter in self.network.trainable:
                parameter.grad = None
            torch.cuda.empty_cache()

    def _pass(
        self,
        sequences: Sequences,
        rows: np.ndarray,
        idle: list[MicroBatch],
        loss_of: LossOf,
        keep: bool,
    ):
        network, sums, outputs = self.network, [], {}
        network.train(True)
        with network.active():
            for batch in sequences.micro_batches(
                rows, self.size.max_rows, self.size.max_tokens, network.device
            ):
                with network.autocast():
                    output = network(batch, self.want)
                if keep:
                    numbers = output.detach().cpu().numpy()
                    outputs |= zip(batch.rows.tolist(), numbers, strict=True)
                loss, of_batch = loss_of(output, batch)
                if not torch.isfinite(loss):
                    raise NonFiniteLossError(f"the loss is {loss.item()}", batch.rows)
                sums.append(of_batch)
                self.accelerator.backward(loss)
            for batch in idle:
                with network.autocast():
                    output = network(batch, self.want)
                self.accelerator.backward(0.0 * output.sum())
        return sums, outputs

    def _apply(self, rows: np.ndarray) -> float:
        """Add up gradients over processes, clip, step; returns the norm before clipping."""
        parameters = self.network.trainable
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                if parameter.grad is None:  # this process had no rows
                    parameter.grad = torch.zeros_like(parameter)
            # FSDP2 has summed those that it has cut
            sum_over_processes([p.grad for p in parameters if not isinstance(p, DTensor)])
        if self.accelerator.scaler is not None:  # which has to have scaled something before
            self.accelerator.scaler.scale(torch.zeros((), device=self.network.device))
        self.accelerator.unscale_gradients(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        norm = whole(norm)
        if not norm.isfinite() and self.accelerator.scaler is None:  # a scaler skips the step
            raise NonFiniteLossError(f"the gradient norm is {norm.item()}", rows)
        self.optimizer.step()
        return norm.item()


def sum_over_processes(tensors: list[Tensor], bucket: int = 2**25) -> None:
    """In place and laid end to end, since each message costs the same wait: an adapter has hundreds
    of small tensors. Of at most about `bucket` numbers each, so that the copies stay small."""
    sizes = np.array([tensor.numel() for tensor in tensors])
    message_of = (np.cumsum(sizes) - sizes) // bucket
    for message in np.unique(message_of):
        parts = [tensors[i] for i in np.flatnonzero(message_of == message)]
        flat = torch.cat([part.flatten() for part in parts])
        torch.distributed.all_reduce(flat)
        sums = flat.split([part.numel() for part in parts])
        for part, total in zip(parts, sums, strict=True):
            part.copy_(total.view_as(part))


def sequences_of(rollouts: Rollouts, share_prompts: bool) -> Sequences:
    """All rows of a rollout batch, to be cut into micro-batches."""
    return Sequences(rollouts.prompt_ids, rollouts.ragged_token_ids, share_prompts)


def shares_of(rows: np.ndarray, sequences: Sequences, accelerator: Accelerator) -> list[np.ndarray]:
    """Each process's part of the rows, of about as many tokens as any other's."""
    longest_first = rows[np.argsort(-sequences.total_lengths[rows], kind="stable")]
    processes = accelerator.num_processes
    return [longest_first[rank::processes] for rank in range(processes)]


def minibatches(
    num_rows: int, step: int, args: SPOConfig, num_processes: int
) -> Iterator[np.ndarray]:
    """The rows of each optimizer step on one rollout batch, `num_iterations` times over; shuffled
    where there are several."""
    size = args.update_batch_size(num_processes)
    for iteration in range(args.num_iterations):
        order = np.arange(num_rows)
        if num_rows > size:
            order = np.random.default_rng([args.seed, step, iteration]).permutation(order)
        yield from order.reshape(-1, size)


def totals(steps: Iterable[Step], names: tuple[str, ...], accelerator: Accelerator) -> list[float]:
    """The sums of these names over all steps, micro-batches and processes."""
    wide = widest_float(accelerator.device)
    batches = [sums for step in steps for sums in step.sums]
    added = [0.0] * len(names)
    if batches:
        rows = torch.stack([sums[name].to(wide) for sums in batches for name in names])
        added = [sum(column) for column in rows.view(-1, len(names)).T.tolist()]
    reduced = torch.tensor(added, dtype=wide, device=accelerator.device)
    return accelerator.reduce(reduced, "sum").tolist()


def build_learner(
    network: Network,
    want: Literal["logprobs", "values"],
    accelerator: Accelerator,
    args: SPOConfig,
    num_updates: int,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> Learner:
    """A learner as `args` describe it; `num_updates` is what the schedule is laid out for."""
    rate, max_grad_norm = args.learning_rate, args.max_grad_norm
    if want == "values":
        max_grad_norm = args.value_max_grad_norm
        rate = rate if args.value_learning_rate is None else args.value_learning_rate
    optimizer = optimizer or build_optimizer(args, network.trainable, rate)
    scheduler = scheduler or build_scheduler(args, optimizer, num_updates)
    if network.sharded is not None:
        keep_whole_state(optimizer, network.trainable)
    optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
    size = MicroBatchSize(args.per_device_train_batch_size, args.max_tokens_per_micro_batch)
    return Learner(network, want, optimizer, scheduler, accelerator, max_grad_norm, size)
