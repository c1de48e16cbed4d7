"""The metrics of every step -> what `train` returns: the last values, and means of the run."""

import math
import time

from transformers.trainer_utils import TrainOutput


class Summary:
    """Sums over the steps of one call of `train`."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.last: dict[str, float] = {}
        self.steps = 0
        self.begun = time.perf_counter()

    def add(self, metrics: dict[str, float]) -> None:
        """Those of one step; what is not finite is in no mean."""
        self.steps, self.last = self.steps + 1, dict(metrics)
        for name, value in metrics.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def output(self, global_step: int, completions_per_step: int) -> TrainOutput:
        """`training_loss` is the mean policy loss (0 where the policy took no step); in `metrics`
        Transformers' names, the last step's values by theirs, and "mean/<name>" over all steps."""
        seconds = time.perf_counter() - self.begun
        means = {f"mean/{name}": self.sums[name] / self.counts[name] for name in self.sums}
        loss = means.get("mean/spo/policy_loss", 0.0)
        speed = {
            "train_runtime": round(seconds, 4),
            "train_samples_per_second": round(self.steps * completions_per_step / seconds, 3),
            "train_steps_per_second": round(self.steps / seconds, 3),
            "train_loss": loss,
        }
        return TrainOutput(global_step, loss, speed | self.last | means)
