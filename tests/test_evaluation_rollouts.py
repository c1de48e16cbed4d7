"""Evaluations are saved: always of the same prompts, so that a run's steps can be compared."""

import importlib

import numpy as np
import pytest
import tiny_runs as runs

from spo import evaluation
from spo.inspector.compare import steps_with
from spo.inspector.folder import Folder
from spo.inspector.history import Histories
from spo.inspector.reading import read_step
from spo.inspector.whatif import check_saved
from spo.networks.batching import Sequences
from spo.rollouts import load_rollouts
from spo.run import index
from spo.scoring import score_rows


def trained(tmp_path, **given):
    settings = {"eval_dataset": runs.prompts(5), "eval_steps": 1, "learning_rate": 0.05}
    trainer = runs.make_trainer(tmp_path / "run", **settings | given)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return folder / "run", trained(folder, per_device_eval_batch_size=2)


def evaluations(run) -> dict:
    paths = sorted((run / "rollouts").glob("eval-step-*.parquet"))
    return {path.name: load_rollouts(path) for path in paths}


def test_every_evaluation_is_a_file_of_the_same_prompts(run):
    saved = evaluations(run[0])
    assert list(saved) == [f"eval-step-{step:06d}.parquet" for step in (0, 1, 2)]
    wanted = runs.prompts(5)["prompt"]
    for step, file in enumerate(saved.values()):
        assert file.rollouts.prompts == wanted
        assert file.rollouts.prompt_index.tolist() == [0, 1, 2, 3, 4]
        assert (file.rollouts.step, file.rollouts.num_generations) == (step, 1)
    texts = [file.rollouts.completions for file in saved.values()]
    assert texts[0] != texts[2]  # the policy has moved


def test_a_file_holds_what_the_metrics_say(run):
    logged = {
        line["step"]: line["eval/reward"]
        for line in runs.metrics_of(run[0])
        if "eval/reward" in line
    }
    for file in evaluations(run[0]).values():
        mean = file.rollouts.completion_rewards.mean()
        assert mean == pytest.approx(logged[file.rollouts.step], rel=1e-5)


def test_its_entropies_are_the_policys_of_then(run):
    folder, trainer = run
    rollouts = evaluations(folder)["eval-step-000002.parquet"].rollouts
    sequences = Sequences(rollouts.prompt_ids, rollouts.ragged_token_ids, False)
    wanted = score_rows(trainer.policy, "logprobs_and_entropies", sequences, trainer.args)
    for name, column in zip(("token_logprobs_old", "token_entropies"), wanted, strict=True):
        found = getattr(rollouts, name)[rollouts.completion_mask]
        np.testing.assert_allclose(found, np.concatenate(column), rtol=1e-3, atol=1e-4)


def test_the_index_has_a_line_of_each(run):
    lines = index.read(run[0] / "rollouts" / index.NAME)
    kinds = [(line["step"], line["evaluation"]) for line in lines]
    assert kinds == [(0, True), (1, False), (1, True), (2, False), (2, True)]


def test_the_inspector_compares_the_first_with_the_last(run):
    folder = Folder(run[0].parent)
    assert list(folder.steps("run/eval").paths) == [0, 1, 2]
    history = Histories(folder).get("run/eval")
    assert steps_with(history, prompt_index=3) == [(0, 3), (1, 3), (2, 3)]
    assert Histories(folder).get("run").indexed("eval/reward").steps.tolist() == [0, 1, 2]
    for path in folder.steps("run/eval").paths.values():
        assert check_saved(read_step(path))["state"] == "verified"


def test_a_bundle_holds_a_few_steps_and_all_evaluations(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(runs.REPO / "scripts"))
    bundling = importlib.import_module("bundle_rollouts")
    monkeypatch.setattr(bundling, "EVERY", 3)
    names = bundling.bundle(run[0], tmp_path / "samples" / "quickstart")
    assert names == [
        *("step-000001.parquet", "step-000002.parquet"),
        *(f"eval-step-{step:06d}.parquet" for step in (0, 1, 2)),
    ]
    folder = Folder(tmp_path / "samples")
    assert list(folder.steps("quickstart").paths) == [1, 2]
    assert len(Histories(folder).get("quickstart").lines) == 2
    assert "eval/reward" in folder.curves("quickstart")


def test_the_first_prompts_of_a_large_data_set_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SAVED_PROMPTS", 3)
    trained(tmp_path, max_steps=1)
    for file in evaluations(tmp_path / "run").values():
        assert file.rollouts.prompt_index.tolist() == [0, 1, 2]


def test_another_data_set_or_no_rollouts_leave_no_file(tmp_path):
    trainer = trained(tmp_path, eval_dataset=None, max_steps=1)
    assert trainer.evaluate(runs.prompts(2))["eval_reward"] >= 0
    assert not evaluations(tmp_path / "run")
    trained(tmp_path / "none", save_rollouts_steps=0)
    assert not list((tmp_path / "none" / "run").rglob("*.parquet"))


def test_what_the_generator_does_not_record_the_policy_says(tmp_path):
    def sample(prompts, trainer):
        ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": [[65 + i % 3, 66, 0] for i in range(len(ids))]}

    trained(tmp_path, rollout_func=sample, max_steps=1)
    rollouts = evaluations(tmp_path / "run")["eval-step-000000.parquet"].rollouts
    assert rollouts.lengths.tolist() == [3] * 5
    assert (rollouts.token_entropies > 0).all()
    assert (rollouts.token_logprobs_old < 0).all()
