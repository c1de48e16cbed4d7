"""The run's index: one line a step that says what its Parquet file says."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from inspector_fixtures import from_pieces, make_rollouts

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.metrics import rollout_metrics
from spo.rollouts import save_rollouts
from spo.run import index


@pytest.fixture
def step():
    rollouts = make_rollouts(np.random.default_rng(0), 7, 8, 8, (20, 60))
    rewards = rollouts.completion_rewards.copy()
    rewards[3] = np.nan
    rollouts = dataclasses.replace(rollouts, completion_rewards=rewards)
    return rollouts, assign_credit(rollouts, SPOConfig(num_generations=8))


def test_a_line_of_64_completions_takes_two_kilobytes(step, tmp_path):
    index.append(*step, tmp_path)
    text = (tmp_path / "index.jsonl").read_text()
    assert 1000 < len(text) <= 2048
    json.loads(text, parse_constant=pytest.fail)  # no NaN


def test_a_line_says_what_the_step_holds(step):
    rollouts, credit = step
    line = index.index_line(rollouts, credit)
    assert line["reward"][3] is None
    known = [reward for reward in line["reward"] if reward is not None]
    assert np.mean(known) == pytest.approx(np.nanmean(rollouts.completion_rewards), abs=1e-3)
    assert line["length"] == rollouts.lengths.tolist()
    assert line["truncated"] == [1]
    assert line["prompt_index"] == list(range(8))
    assert line["value"][0] == pytest.approx(rollouts.token_values[0, 0], abs=0.01)
    mask = rollouts.completion_mask
    assert line["entropy"][5] == pytest.approx(
        rollouts.token_entropies[5][mask[5]].mean(), rel=0.01
    )
    metrics = rollout_metrics(rollouts, credit, SPOConfig(num_generations=8))
    assert line["explained_variance"] == pytest.approx(metrics["spo/explained_variance"], rel=0.01)
    assert line["segments"] == pytest.approx(metrics["spo/mean_segments_per_sequence"], rel=0.01)


def test_tenths_and_bins_are_those_of_a_plain_loop(step):
    rollouts, credit = step
    line = index.index_line(rollouts, credit)
    sizes = [[] for _ in range(10)]
    at_starts = []
    for row, length in enumerate(rollouts.lengths):
        if np.isnan(rollouts.completion_rewards[row]):
            continue
        for at in range(length):
            sizes[10 * at // length].append(abs(credit.token_advantages[row, at]))
            if at == 0 or credit.segment_ids[row, at] != credit.segment_ids[row, at - 1]:
                at_starts.append((rollouts.token_values[row, at], rollouts.completion_rewards[row]))
    assert line["advantage_by_tenth"] == pytest.approx([np.mean(x) for x in sizes], rel=0.01)
    assert sum(count for *_, count in line["calibration"]) == len(at_starts)
    lowest = sorted(at_starts)[: line["calibration"][0][3]]
    assert line["calibration"][0][0] == pytest.approx(np.mean([v for v, _ in lowest]), rel=0.01)


def test_the_prompt_alone_explains_everything_where_v_never_changes(step):
    rollouts, credit = step
    constant = np.broadcast_to(rollouts.token_values[:, :1], rollouts.token_values.shape).copy()
    line = index.index_line(dataclasses.replace(rollouts, token_values=constant), credit)
    assert line["explained_variance"] == line["explained_variance_prompt"]


def test_without_critic_and_without_tokens():
    rollouts = from_pieces(np.random.default_rng(0), 1, [[], ["x"]], 2, critic=False)
    line = index.index_line(rollouts, assign_credit(rollouts, SPOConfig(num_generations=2)))
    assert line["value"] is None
    assert line["entropy"][0] is None
    assert "calibration" not in line
    empty = from_pieces(np.random.default_rng(0), 1, [[], []], 2)
    line = index.index_line(empty, assign_credit(empty, SPOConfig(num_generations=2)))
    assert line["value"] == [None, None]


def test_one_function_is_the_reward_itself(step):
    rollouts, credit = step
    rewards = rollouts.completion_rewards
    rollouts = dataclasses.replace(
        rollouts, rewards_by_function=np.stack([rewards, rewards / 2], axis=1)
    )
    columns = index.index_line(rollouts, credit)["rewards_by_function"]
    assert columns["correct"] is None
    assert columns["format"][3] is None
    assert columns["format"][0] == pytest.approx(rewards[0] / 2)


def test_cut_lines_are_left_out_and_a_resumed_step_counts_once(step, tmp_path):
    rollouts, credit = step
    index.append(rollouts, credit, tmp_path)
    path = tmp_path / "index.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 8, "rew')  # killed while writing
    index.append(dataclasses.replace(rollouts, step=8), credit, tmp_path)
    again = dataclasses.replace(rollouts, completion_rewards=rollouts.completion_rewards * 0)
    index.append(again, credit, tmp_path)
    path.write_bytes(path.read_bytes() + b'[1]\n{"step": true}\n' + b"[" * 100_000 + b"\n")
    lines = index.read(path)
    assert [line["step"] for line in lines] == [7, 8]
    assert set(lines[0]["reward"]) == {0, None}


def test_older_runs_get_the_same_lines(step, tmp_path):
    rollouts, credit = step
    config = SPOConfig(num_generations=8)
    path = save_rollouts(rollouts, tmp_path / "step-000007.parquet", credit, config)
    broken = tmp_path / "step-000008.parquet"
    broken.write_bytes(b"PAR1")
    evaluated = save_rollouts(rollouts, tmp_path / "eval-step-000007.parquet", credit, config)
    lines = dict(index.rebuild([path, broken, evaluated]))
    assert lines[path] == index.index_line(rollouts, credit)
    assert lines[broken] is None
    assert lines[evaluated]["evaluation"] is True


def test_it_imports_no_torch():
    command = "import sys, spo.run.index; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
