"""What benchmarks/learning.py compares: tasks, each with its base model, and ways to assign credit.

Task: a reasoning-gym task, how its base is made, and the settings that all modes share.
Mode: the settings of SPOConfig, or of TRL's GRPOConfig, that make it what it is.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import ROOT


@dataclass(frozen=True)
class Task:
    """A base model, the problems it trains on, and the settings that all modes share."""

    dataset: str
    options: dict[str, int]
    base: str
    settings: dict[str, Any]
    updates: int
    eval_every: int = 20
    eval_size: int = 400
    folder: str | None = None
    lora_r: int | None = None
    threads: int = 1

    @property
    def make_base(self) -> list[str]:
        """Arguments of scripts/make_quickstart_model.py."""
        options = [f"{name}={value}" for name, value in self.options.items()]
        return ["--task", self.dataset, "--task_options", *options, *self.base.split()]

    @property
    def base_folder(self) -> Path:
        return ROOT / (self.folder or f"runs/bases/{self.dataset}")


TINY = {
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "learning_rate": 4e-4,
    "beta": 0.01,
    "adam_beta2": 0.99,
    "max_grad_norm": 0.1,
    "lr_scheduler_type": "constant",
}
"""The batch of one small card: 16 solutions an update. The bit of KL penalty keeps the base model's
most fragile skill, to know which number comes next: without it all modes, TRL's too, lose that now
and then and break down. Gradient norms are about 0.1, and a rare one is ten times that, hence the
clip."""

CHAIN_SUM = Task(
    "chain_sum",
    {"min_terms": 8, "max_terms": 10, "min_digits": 1, "max_digits": 1},
    "--fillers 8 --wrong_step_fraction 0.12 --steps 3000",
    TINY | {"max_completion_length": 112},
    updates=120,
)
LEG_COUNTING = Task(
    "leg_counting",
    {"min_animals": 3, "max_animals": 5, "min_instances": 1, "max_instances": 9},
    "--fillers 8 --wrong_step_fraction 0.08 --steps 3000",
    TINY | {"max_completion_length": 144},
    updates=120,
)
OF_TINY_MODELS = {
    "chain_sum": CHAIN_SUM,
    "leg_counting": LEG_COUNTING,
    "chain_sum_habit": replace(
        CHAIN_SUM,
        base="--fillers 8 --wrong_step_fraction 0 --habit_fraction 0.6 --steps 3000",
        folder="runs/bases/chain_sum_habit",
    ),
    "leg_counting_habit": replace(
        LEG_COUNTING,
        base="--fillers 8 --wrong_step_fraction 0 --habit_fraction 0.7 --steps 3000",
        folder="runs/bases/leg_counting_habit",
    ),
}
"""Bases that slip now and then, so that whatever makes a policy surer of itself helps; and bases
with habits, mistakes that are the most likely step (see scripts/make_quickstart_model.py)."""

TASKS = {
    **OF_TINY_MODELS,
    "smollm2": Task(
        "chain_sum",
        {"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1},
        "--model models/SmolLM2-135M-Instruct --threads 2 --fillers 8 --wrong_step_fraction 0.12 "
        "--steps 100 --batch_size 16 --learning_rate 1e-4 --held_out 100",
        TINY | {"bf16": True, "learning_rate": 3e-4, "max_completion_length": 96},
        updates=40,
        eval_every=10,
        eval_size=200,
        folder="runs/bases/smollm2",
        lora_r=8,
    ),
    "smoke": Task(
        "chain_sum",
        {"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1},
        "",
        TINY | {"max_completion_length": 64},
        updates=2,
        eval_every=1,
        eval_size=16,
        folder="assets/quickstart",
    ),
}

CRITIC = {
    "num_generations": 1,
    "value_model_path": "policy",
    "value_learning_rate": 3e-4,
    "value_features": "surprisal",
    "normalize_advantages": False,
    "lam": 0.8,
}
SPO = CRITIC | {"entropy_percentile": 0.2}
NLL = {"positive_nll_coef": 0.5}
PATH = SPO | {"value_model_path": None}
"""The critic is the regression on surprisal features alone."""
FROZEN = SPO | {"value_features": "none", "value_learning_rate": 0.0}
"""All values stay 0: the advantage is the reward, times λ for every segment that follows."""
REINFORCE = FROZEN | {"lam": 1.0}
"""Every token's advantage is the reward."""
TRL: dict[str, dict[str, Any]] = {"trl_grpo": {}, "trl_grpo_slow": {"learning_rate": 2e-4}}
GRPO: dict[str, dict[str, Any]] = {
    "grpo": {"entropy_percentile": 0.0},
    "grpo_slow": {"entropy_percentile": 0.0, "learning_rate": 2e-4},
}
"""Without a critic a policy breaks down more easily: such modes run at half the learning rate, too,
and the better of the two counts."""
MODES: dict[str, dict[str, Any]] = {
    **GRPO,
    "critic": CRITIC | {"entropy_percentile": 0.0},
    "spo_p05": CRITIC | {"entropy_percentile": 0.05},
    "spo_p10": CRITIC | {"entropy_percentile": 0.1},
    "spo_p20": SPO,
    "spo_nll": SPO | NLL,
    "path": PATH,
    "path_nll": PATH | NLL,
    "ppo": CRITIC | {"entropy_percentile": 1.0},
    "spo_8_generations": SPO | {"num_generations": 8},
    "spo_normalized": SPO | {"normalize_advantages": True},
    "spo_no_features": SPO | {"value_features": "none"},
    "spo_frozen_critic": FROZEN,
    "frozen_nll": FROZEN | NLL,
    "frozen_normalized": FROZEN | {"normalize_advantages": True},
    "exact_values": FROZEN,
    "exact_values_nll": FROZEN | NLL,
    "reinforce": REINFORCE,
    "reinforce_normalized": REINFORCE | {"normalize_advantages": True},
    "spo_value_mean": SPO | {"segment_value": "mean"},
    "spo_value_last": SPO | {"segment_value": "last"},
    "spo_token_level": SPO | {"advantage_level": "token"},
    "spo_lam90": SPO | {"lam": 0.9},
    "spo_lam95": SPO | {"lam": 0.95},
    "spo_lam100": SPO | {"lam": 1.0},
    "grpo_nll": {"entropy_percentile": 0.0} | NLL,
    "grpo_nll_slow": {"entropy_percentile": 0.0, "learning_rate": 2e-4} | NLL,
    "grpo_4_generations": {"entropy_percentile": 0.0, "num_generations": 4},
    **TRL,
}
EXACT = ("exact_values", "exact_values_nll")
"""Their values are right, by benchmarks/exact_critic.py."""
MAIN = (
    *GRPO,
    *("critic", "spo_p05", "spo_p10", "spo_p20", "spo_nll", "ppo", "reinforce"),
    *TRL,
)
"""Compared over all seeds; the rest are ablations."""
PLOTTED = tuple(mode for mode in MAIN if mode not in ("spo_p05", "spo_p10"))
"""Few enough to tell their colours apart."""
