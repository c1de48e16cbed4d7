"""Training with a vLLM server: a stand-in that speaks its routes, with a real policy behind it."""

import threading
import warnings

import numpy as np
import pytest
import tiny_runs as runs
from peft import LoraConfig
from vllm_stand_in import StandIn

from spo.errors import EngineError
from spo.generation import vllm
from spo.generation.adapter import adapter_name
from spo.rollouts import load_rollouts

MEAN = "sampling/sampling_logp_difference/mean"


@pytest.fixture
def server():
    with StandIn(runs.policy()) as stand_in:
        yield stand_in


def make_trainer(folder, server, **given):
    """A trainer whose adapter moves far in a step."""
    settings = {"learning_rate": 0.05, "value_model": "policy", "vllm_server_timeout": 60.0}
    settings["peft_config"] = LoraConfig(**runs.LORA)
    trainer = runs.make_trainer(
        folder,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=server.url,
        **settings | given,
    )
    trainer.generator.client.pause = 0.05
    return trainer


def metric(folder, name):
    return [line[name] for line in runs.metrics_of(folder) if name in line]


# --- what it samples --------------------------------------------------------------------------


def test_every_step_samples_from_the_policy_as_it_is(server, tmp_path):
    """Log-probs of server and trainer agree at every step, although the adapter moves."""
    trainer = make_trainer(tmp_path / "run", server, max_steps=3, temperature=0.7)
    before = runs.weights_of(trainer)
    trainer.train()
    assert max(metric(tmp_path / "run", "sampling/sampling_logp_difference/max")) < 1e-5
    assert metric(tmp_path / "run", "sampling/importance_sampling_ratio/mean") == pytest.approx(
        [1.0] * 3, abs=1e-4
    )
    assert runs.largest_difference(before, runs.weights_of(trainer)) > 0.1
    assert len(set(server.loaded)) == 3  # one adapter a step
    assert server.unloaded == server.loaded[:-1]
    assert [path.name for path in (tmp_path / "run/.vllm-adapters").iterdir()] == [
        server.loaded[-1]
    ]


def test_an_adapter_that_stays_behind_is_seen(server, tmp_path):
    """The control of the test above: a server that keeps the first adapter under every name."""
    server.deaf = True
    settings = {"max_steps": 3, "temperature": 0.7}
    make_trainer(tmp_path / "run", server, learning_rate=0.002, **settings).train()
    first, *later = metric(tmp_path / "run", MEAN)
    assert first < 1e-5
    assert min(later) > 0.01
    with pytest.raises(EngineError, match=r"Step 2.*nats a token"):  # where it is far behind
        make_trainer(tmp_path / "far", server, **settings).train()


def test_no_step_without_the_load(server, tmp_path):
    """The control of the trainer: were the load left out after an update, it would stop."""
    trainer = make_trainer(tmp_path / "run", server)
    load, loads = trainer.generator.load, []

    def only_once(policy):
        loads.append(policy)
        if len(loads) == 1:
            load(policy)

    trainer.generator.load = only_once
    with pytest.raises(EngineError, match="weights of an earlier step"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_completions_are_in_our_conventions(server, tmp_path):
    """The end token is there, `truncated` says where there is none, the rest is recorded."""
    trainer = make_trainer(tmp_path / "run", server, max_steps=1, max_completion_length=6)
    trainer.train()
    batch = load_rollouts(tmp_path / "run/rollouts/step-000001.parquet").rollouts
    ends = set(trainer.sampling_params.eos_token_ids)
    truncated = batch.truncated.tolist()
    assert True in truncated
    assert False in truncated
    for ids, cut in zip(batch.ragged_token_ids, truncated, strict=True):
        assert not ends & set(ids[:-1])
        assert (ids[-1] not in ends) == cut
        assert len(ids) == 6 or not cut
    assert batch.token_logprobs_sampler.shape == batch.token_logprobs_old.shape
    assert (batch.token_entropies[batch.completion_mask] > 0).all()


def test_everything_that_the_models_own_settings_would_fill_is_said(server, tmp_path):
    bent = {"min_p": 0.01, "repetition_penalty": 1.1, "generation_kwargs": {"min_new_tokens": 2}}
    cut = {"top_k": 7, "top_p": 0.9, "temperature": 0.8}
    make_trainer(tmp_path / "run", server, max_steps=1, **cut, **bent).train()
    asked = server.bodies[-1]
    expected = {
        "temperature": 0.8,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 8,
        "ignore_eos": True,
    }
    assert {name: asked[name] for name in expected} == expected
    assert asked["model"] == server.loaded[-1]


def test_a_resumed_run_samples_the_same(server, tmp_path):
    """Three steps at once, and two with a third after a restart of everything."""
    make_trainer(tmp_path / "whole", server, max_steps=3).train()
    settings = {"max_steps": 3, "save_steps": 2}
    first = make_trainer(tmp_path / "run", server, callbacks=[runs.StopAfter(2)], **settings)
    first.train()
    server.restart()
    make_trainer(tmp_path / "run", server, **settings).train("latest")
    whole, run = runs.rollouts_of(tmp_path / "whole"), runs.rollouts_of(tmp_path / "run")
    for a, b in zip(whole, run, strict=True):
        assert a.rollouts.ragged_token_ids == b.rollouts.ragged_token_ids
    completions = [tuple(ids) for saved in run for ids in saved.rollouts.ragged_token_ids]
    assert len(set(completions)) > len(completions) / 2  # rows and steps differ


def test_the_same_adapter_of_another_run_is_not_relied_on(server, tmp_path):
    """Its folder may be deleted, and a server that reads it again would die."""
    make_trainer(tmp_path / "a", server, max_steps=1).train()
    make_trainer(tmp_path / "b", server, max_steps=1).train()
    first, second = server.loaded
    assert first == second  # the same seed, the same weights
    assert server.roots[second].startswith(str(tmp_path / "b"))


def test_evaluation_asks_the_same_server(server, tmp_path):
    trainer = make_trainer(tmp_path / "run", server, eval_dataset=runs.prompts(3), max_steps=1)
    trainer.evaluate()
    assert [body["temperature"] for body in server.bodies[1:]] == [0.0] * 3
    trainer.train()
    assert server.loaded[0] == server.bodies[1]["model"]
    assert server.bodies[-1]["model"] == server.loaded[-1] != server.loaded[0]


# --- servers in trouble -----------------------------------------------------------------------


def test_a_restarted_server_is_sent_the_adapter_again(server, tmp_path):
    """It goes down with completions under way, comes back empty, and the run notices nothing."""
    make_trainer(tmp_path / "whole", server, max_steps=3).train()
    steps = len(server.bodies)

    def break_down(number):
        if number == steps + 14:
            server.adapters = {}

    server.before_completion = break_down
    make_trainer(tmp_path / "run", server, max_steps=3).train()
    assert len(server.loaded) > len(set(server.loaded[3:])) + 3
    assert runs.metrics_of(tmp_path / "run") == runs.metrics_of(tmp_path / "whole")


def test_a_run_waits_for_a_dead_server_and_goes_on(server, tmp_path):
    make_trainer(tmp_path / "whole", server, max_steps=3).train()
    trainer = make_trainer(tmp_path / "run", server, max_steps=3)
    update_done = trainer.run.log_step

    def dies_after_step_1(step, *rest):
        update_done(step, *rest)
        if step == 1:
            server.stop()
            threading.Timer(0.5, server.start).start()

    trainer.run.log_step = dies_after_step_1
    with pytest.warns(UserWarning, match="does not answer.*trying again for 60 seconds") as told:
        trainer.train()
    assert len([w for w in told if "does not answer" in str(w.message)]) == 1
    assert runs.metrics_of(tmp_path / "run") == runs.metrics_of(tmp_path / "whole")


def test_a_server_that_stays_dead_ends_the_run_and_keeps_what_was_trained(server, tmp_path):
    make_trainer(tmp_path / "whole", server, max_steps=3).train()
    trainer = make_trainer(tmp_path / "run", server, max_steps=3)
    log_step = trainer.run.log_step

    def dies_after_step_2(step, *rest):
        log_step(step, *rest)
        if step == 2:
            server.stop()
            trainer.generator.client.timeout = 0.5

    trainer.run.log_step = dies_after_step_2
    with (
        pytest.warns(UserWarning, match="does not answer"),
        pytest.raises(EngineError, match=r"no answer for 0.5 seconds.*resume_from_checkpoint auto"),
    ):
        trainer.train()
    server.start()
    make_trainer(tmp_path / "run", server, max_steps=3).train("auto")
    assert runs.metrics_of(tmp_path / "run") == runs.metrics_of(tmp_path / "whole")


def refusal(server, folder, **given):
    """The sentence that the run ends with."""
    trainer = make_trainer(folder, server, **given)
    with warnings.catch_warnings(action="ignore"), pytest.raises(EngineError) as caught:
        trainer.train()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_server_whose_engine_has_died(server, tmp_path):
    server.broken = True
    sentence = refusal(server, tmp_path / "run", vllm_server_timeout=0.3)
    assert "EngineCore has died" in sentence


def test_a_server_that_is_too_slow(server, tmp_path):
    server.delay = 2.0
    sentence = refusal(server, tmp_path / "run", vllm_server_timeout=0.5)
    assert "gave no answer for 0.5 seconds" in sentence
    assert "--vllm_server_timeout" in sentence


def test_a_server_of_another_model(tmp_path):
    with StandIn(runs.policy(seed=5)) as server:
        trainer = make_trainer(tmp_path / "run", server)
        before = runs.weights_of(trainer)
        with pytest.raises(EngineError, match="nats a token from the policy's own"):
            trainer.train()
        assert runs.same_bits(before, runs.weights_of(trainer))


def test_a_server_with_raw_logprobs(server, tmp_path):
    server.raw_logprobs = True
    assert "processed_logprobs" in refusal(server, tmp_path / "run")


def test_a_server_started_without_adapters(server, tmp_path):
    server.runtime_lora = False
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in refusal(server, tmp_path / "run")


def test_an_adapter_that_cannot_be_written(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vllm, "write_adapter", full)
    sentence = refusal(server, tmp_path / "run")
    assert sentence == "The adapter for vLLM could not be written: No space left on device."


def test_something_else_on_that_port(server, tmp_path):
    server.route = lambda path, body: (200, "<html>hello</html>")
    assert "is no vLLM server" in refusal(server, tmp_path / "run")


def test_a_request_that_is_refused(server, tmp_path):
    route = server.route

    def too_long(path, body):
        if path == "/v1/completions":
            return 400, {"error": {"message": "max_model_len is 4"}}
        return route(path, body)

    server.route = too_long
    assert "max_model_len is 4" in refusal(server, tmp_path / "run")


# --- what cannot be sent ----------------------------------------------------------------------


def test_full_fine_tuning_is_refused(server, tmp_path):
    with pytest.raises(ValueError, match="add use_peft"):
        runs.make_trainer(tmp_path / "run", use_vllm=True, vllm_mode="server")


def test_an_adapter_that_vllm_cannot_apply_is_refused(server, tmp_path):
    with pytest.raises(ValueError, match="use_dora"):
        make_trainer(tmp_path / "run", server, peft_config=LoraConfig(**runs.LORA, use_dora=True))


def test_a_setting_that_vllm_does_not_know_is_refused(server, tmp_path):
    with pytest.raises(ValueError, match="does not know typical_p"):
        make_trainer(tmp_path / "run", server, generation_kwargs={"typical_p": 0.9})


def test_vllm_and_a_rollout_function_do_not_go_together(server, tmp_path):
    with pytest.raises(ValueError, match="rollout_func and use_vllm both sample"):
        make_trainer(tmp_path / "run", server, rollout_func=lambda prompts, trainer: {})


def test_adapters_are_told_apart_by_their_weights(server, tmp_path):
    """Another number in one weight is another name."""
    trainer = make_trainer(tmp_path / "run", server)
    name = adapter_name(trainer.policy)
    assert adapter_name(trainer.policy) == name
    weight = trainer.policy.trainable[-1]
    numbers = weight.data.view(-1)
    numbers[0] = float(np.nextafter(np.float32(numbers[0]), np.float32(1)))
    assert adapter_name(trainer.policy) != name
