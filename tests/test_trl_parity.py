"""The same weights as TRL's GRPOTrainer after two updates on the same completions and rewards."""

import importlib.util

import numpy as np
import pytest
import tiny_runs as runs
import torch
from datasets import Dataset
from tiny import EOS, byte_tokenizer

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None, reason="TRL is in requirements-bench.txt"
    ),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

PROMPTS = ["2 + 2 =", "3 + 5 + 1 =", "9 ="]
GROUP = 4
LENGTH = 6
RATE = 0.01
"""High enough for many tokens to leave the clip range before the second update."""

ENDED, CUT = [EOS], [70]


def completions(truncated: tuple[int, ...] = ()) -> list[list[int]]:
    """Of other lengths each; a truncated one is as long as it may be and does not end."""
    random = np.random.default_rng(0)
    rows = []
    for row in range(len(PROMPTS) * GROUP):
        cut = row in truncated
        body = random.integers(65, 122, LENGTH - 1 if cut else 1 + row % (LENGTH - 2)).tolist()
        rows.append([*body, *(CUT if cut else ENDED)])
    return rows


def sampled(rows: list[list[int]]):
    """A rollout function of either trainer: the n-th time a prompt comes, its n-th completion."""

    def rollout(prompts, trainer):
        seen = dict.fromkeys(PROMPTS, 0)
        ids = []
        for prompt in prompts:
            ids.append(rows[PROMPTS.index(prompt) * GROUP + seen[prompt]])
            seen[prompt] += 1
        tokenizer = byte_tokenizer()
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": ids,
        }

    return rollout


def with_logprobs(rollout):
    """TRL asks for them and does not read them; SPO would correct its loss by them."""

    def with_zeros(prompts, trainer):
        output = rollout(prompts, trainer)
        return output | {"logprobs": [[0.0] * len(row) for row in output["completion_ids"]]}

    return with_zeros


def scored(rows: list[list[int]], unscorable: tuple[int, ...] = ()):
    """Two rewards of other spreads, by the completion alone; None where it cannot be scored."""

    def letters(completion_ids, **columns):
        index = [rows.index(list(ids)) for ids in completion_ids]
        return [None if i in unscorable else float(rows[i][0] % 7) for i in index]

    def length(completion_ids, **columns):
        index = [rows.index(list(ids)) for ids in completion_ids]
        return [None if i in unscorable else -20.0 * len(rows[i]) for i in index]

    return [letters, length]


def settings_of(folder, **changed):
    common = {
        "output_dir": str(folder),
        "num_generations": GROUP,
        "per_device_train_batch_size": len(PROMPTS) * GROUP,
        "max_completion_length": LENGTH,
        "num_iterations": 2,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "beta": 0.0,
        "reward_weights": [1.0, 0.1],
        "disable_tqdm": True,
        "log_completions": False,
        "use_cpu": True,
    }
    return common | changed


def by_trl(folder, rows, rewards, max_steps=2, rate=RATE, **changed):
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    model = runs.policy()
    model.config._name_or_path = runs.folder(folder / "model")  # where the reference comes from
    off = {"bf16": False, "gradient_checkpointing": False}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=GRPOConfig(
            max_steps=max_steps,
            save_strategy="no",
            report_to="none",
            **off,
            **settings_of(folder, **changed),
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=byte_tokenizer(),
        rollout_func=with_logprobs(sampled(rows)),
        optimizers=(torch.optim.SGD(model.parameters(), lr=rate), None),
    )
    trainer.train()
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def by_spo(folder, rows, rewards, rate=RATE, **changed):
    model = runs.policy()
    trainer = runs.make_trainer(
        model=model,
        reward_funcs=rewards,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        rollout_func=sampled(rows),
        optimizers=(torch.optim.SGD(model.parameters(), lr=rate), None),
        **settings_of(folder, max_steps=1, **changed),
    )
    metrics = trainer.train().metrics
    return {n: w.detach().numpy() for n, w in model.named_parameters()}, metrics


CASES = {
    "dapo": {},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.5},
    "sapo": {"loss_type": "sapo", "sapo_temperature_neg": 2.0},
    "sequence": {"importance_sampling_level": "sequence"},
    "cispo-sequence": {
        "loss_type": "cispo",
        "epsilon_high": 1.5,
        "importance_sampling_level": "sequence",
    },
    "delta": {"delta": 1.4},
    "kl": {"beta": 0.3, "use_bias_correction_kl": True, "rate": 1e-3},
    "kl without its ratio": {"beta": 0.3, "use_bias_correction_kl": False, "rate": 1e-3},
    "batch": {"scale_rewards": "batch"},
    "none": {"scale_rewards": "none"},
    "by function": {"multi_objective_aggregation": "normalize_then_sum"},
}


LOSSES = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"]


@pytest.mark.parametrize("case", CASES)
def test_two_updates_give_trls_weights(case, tmp_path):
    metrics = check(tmp_path, completions(), **CASES[case])
    if case in ("dapo", "cispo"):  # else the second update says nothing about clipping
        assert metrics["spo/clip_fraction"] > 0.1


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", [*LOSSES, "batch", "by function", "kl"])
def test_so_they_do_with_truncated_completions(case, masked, tmp_path):
    """Masked ones: their rewards stay in the mean and std of the group, and they in the number of
    completions."""
    rows = completions(truncated=(1, 5, 6, 7))
    check(tmp_path, rows, mask_truncated_completions=masked, **CASES[case])


@pytest.mark.parametrize("case", ["dapo", "grpo", "dr_grpo", "batch", "by function"])
def test_a_reward_of_none_is_out_of_the_denominator_and_of_trls_not(case, tmp_path):
    """The one difference: TRL's update is smaller by the share of what could not be scored."""
    rows, unscorable = completions(), (1, 5, 6)
    rewards = scored(rows, unscorable)
    start = {name: w.detach().numpy() for name, w in runs.policy().named_parameters()}
    settings = CASES[case] | {"num_iterations": 1}
    theirs = by_trl(tmp_path / "trl", rows, rewards, max_steps=1, **settings)
    ours, _ = by_spo(tmp_path / "spo", rows, rewards, **settings)
    by_rows = CASES[case].get("loss_type", "dapo") in ("grpo", "dr_grpo")
    sizes = np.array([1 if by_rows else len(row) for row in rows])
    share = 1 - sizes[[*unscorable]].sum() / sizes.sum()
    for name, weight in theirs.items():
        step = share * (ours[name] - start[name])
        np.testing.assert_allclose(step, weight - start[name], rtol=0, atol=1e-6, err_msg=name)
    assert max(np.abs(ours[name] - start[name]).max() for name in start) > 1e-3


def check(folder, rows, **changed):
    rewards = scored(rows)
    theirs = by_trl(folder / "trl", rows, rewards, **changed)
    ours, metrics = by_spo(folder / "spo", rows, rewards, **changed)
    start = {name: w.detach().numpy() for name, w in runs.policy().named_parameters()}
    for name, weight in theirs.items():
        np.testing.assert_allclose(ours[name], weight, rtol=0, atol=1e-6, err_msg=name)
    assert max(np.abs(theirs[name] - start[name]).max() for name in start) > 1e-3
    return metrics
