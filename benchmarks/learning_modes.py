"""Modes of benchmarks/learning.py: the settings of SPOConfig, or of TRL's GRPOConfig, that make
each what it is, beside those that a task gives to all.
"""

from typing import Any

Settings = dict[str, Any]

# --- the first study ------------------------------------------------------------------------------

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
"""A network whose values stay 0: the advantage is the reward, times λ for every segment that
follows."""
SLOW = {"learning_rate": 2e-4}
TRL: dict[str, Settings] = {"trl_grpo": {}, "trl_grpo_slow": SLOW}
GRPO: dict[str, Settings] = {
    "grpo": {"entropy_percentile": 0.0},
    "grpo_slow": {"entropy_percentile": 0.0} | SLOW,
}
"""Without a critic a policy breaks down more easily: such modes run at half the learning rate, too,
and the better of the two counts."""
FIRST: dict[str, Settings] = {
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
    "reinforce": FROZEN | {"lam": 1.0},
    "reinforce_normalized": FROZEN | {"lam": 1.0, "normalize_advantages": True},
    "spo_value_mean": SPO | {"segment_value": "mean"},
    "spo_value_last": SPO | {"segment_value": "last"},
    "spo_token_level": SPO | {"advantage_level": "token"},
    "spo_lam90": SPO | {"lam": 0.9},
    "spo_lam95": SPO | {"lam": 0.95},
    "spo_lam100": SPO | {"lam": 1.0},
    "grpo_nll": GRPO["grpo"] | NLL,
    "grpo_nll_slow": GRPO["grpo_slow"] | NLL,
    "grpo_4_generations": {"entropy_percentile": 0.0, "num_generations": 4},
    **TRL,
}
MAIN = (
    *GRPO,
    *("critic", "spo_p05", "spo_p10", "spo_p20", "spo_nll", "ppo", "reinforce"),
    *TRL,
)
"""Compared over all seeds; the rest are ablations."""
PLOTTED = tuple(mode for mode in MAIN if mode not in ("spo_p05", "spo_p10"))
"""Few enough to tell their colours apart."""

# --- critics that know an answer ------------------------------------------------------------------

ALONE = {
    "num_generations": 1,
    "entropy_percentile": 0.2,
    "lam": 0.5,
    "normalize_advantages": False,
    "value_sources": ["surprisal"],
} | NLL
"""One completion a problem, no network. What differs between the modes below is what the critic
reads, unless they say more."""
REFERENCE = ALONE | {
    "value_sources": ["surprisal", "reference"],
    "value_reference": ["solution"],
}
GROUP = {"entropy_percentile": 0.0}


def _reads(*sources: str, of: tuple[str, ...] = (), generations: int = 1) -> Settings:
    found = ALONE | {"value_sources": ["surprisal", *sources], "num_generations": generations}
    return found | {"value_reference": list(of)} if of else found


TUNED: dict[str, Settings] = {
    "reference": REFERENCE,
    "values_0": ALONE,
    "exact_values": ALONE,
    "reinforce": ALONE | {"lam": 1.0, "positive_nll_coef": 0.0},
    "reinforce_nll": ALONE | {"lam": 1.0},
    "reinforce_half": ALONE | {"lam": 1.0, "positive_nll_coef": 0.0},
    "grpo": GROUP,
    "grpo_nll": GROUP | NLL,
    "rloo": GROUP | {"scale_rewards": "none"},
    "trl_grpo": {},
    "surprisal": ALONE,
    "ppo": ALONE | {"entropy_percentile": 1.0, "lam": 0.95},
    "reference_no_nll": REFERENCE | {"positive_nll_coef": 0.0},
    "values_0_no_nll": ALONE | {"positive_nll_coef": 0.0},
    "reference_rest": _reads("reference", "rest", of=("solution",)),
    "reference_rest_lam_25": _reads("reference", "rest", of=("solution",)) | {"lam": 0.25},
    "exact_values_lam_0": ALONE | {"lam": 0.0},
    "reference_numbers": REFERENCE | {"value_reference_items": ["numbers"]},
    "reference_rest_numbers": _reads("reference", "rest", of=("solution",))
    | {"value_reference_items": ["numbers"]},
    "reference_prose": _reads("reference", of=("prose",)),
    "answer_only": _reads("reference", of=("answer",)),
    "hint": _reads("hint", of=("solution",)),
    "hint_peer": _reads("hint", of=("peer",), generations=4),
    "peer_4": _reads("reference", of=("peer",), generations=4),
    "peer_2": _reads("reference", of=("peer",), generations=2),
    "peer_peers_4": _reads("reference", "peers", of=("peer",), generations=4),
    "peer_peers_2": _reads("reference", "peers", of=("peer",), generations=2),
    "peers_4": _reads("peers", generations=4),
    "memory": _reads("reference", "history", of=("memory",)),
    "history": _reads("history"),
    "peer_memory_2": _reads("reference", "peers", "history", of=("peer", "memory"), generations=2),
    "lam_auto": REFERENCE | {"lam": "auto"},
    "coefficient_auto": REFERENCE | {"value_coefficient": "auto"},
    "lam_0": REFERENCE | {"lam": 0.0},
    "lam_25": REFERENCE | {"lam": 0.25},
    "lam_80": REFERENCE | {"lam": 0.8},
    "lam_100": REFERENCE | {"lam": 1.0},
    "network_reference": ALONE
    | {
        "value_sources": None,
        "value_features": "none",
        "value_model_path": "policy",
        "value_learning_rate": 3e-4,
        "value_prompt": "reference",
        "value_reference": ["solution"],
    },
    "monte_carlo": ALONE | {"value_sources": ["monte_carlo"], "value_continuations": 4},
}
CONSTANT = {
    **dict.fromkeys(("values_0", "values_0_no_nll", "reinforce", "reinforce_nll"), 0.0),
    "reinforce_half": 0.5,
}
"""The value of everything: the critic named above is taken out again. One half pushes wrong
completions away as hard as right ones are pulled, as rewards of −1 and +1 would."""
EXACT = ("exact_values", "exact_values_lam_0")
"""Their values are right, by benchmarks/exact_critic.py."""
OF_TRL = tuple(TRL)
LARGE = "_64"
"""A mode's name with this behind it: the mode at a batch of 64."""
SWEPT = ("grpo", "reinforce", "reinforce_nll", "values_0", "reference", "peer_4")
GRID = {"learning_rate": (2e-4, 4e-4, 8e-4), "max_grad_norm": (0.1, 1.0)}
TUNED_AS = {
    **dict.fromkeys(("grpo_nll", "rloo", "trl_grpo"), "grpo"),
    **dict.fromkeys(("peer_2", "peer_peers_4", "peer_peers_2", "peers_4", "hint_peer"), "peer_4"),
    "reinforce_half": "reinforce",
    "values_0": "reference",
}
"""Whose learning rate and clip a mode takes, its own place in the sweep notwithstanding: `values_0`
differs in its values alone. All others that were not swept take `reference`'s."""


def tuned_settings(mode: str) -> Settings:
    """Of the mode, of a large batch if its name ends so, without learning rate and clip."""
    if mode.endswith(LARGE):
        return TUNED[mode.removesuffix(LARGE)] | {"per_device_train_batch_size": 64}
    return TUNED[mode]
