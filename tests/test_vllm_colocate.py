"""vLLM inside the process: against a stand-in of its `LLM`, and, marked slow, against itself."""

import importlib.metadata
import importlib.util
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import tiny_runs as runs
import torch
from peft import LoraConfig, PeftModel
from tiny import EOS, tiny_llama
from transformers import LlamaForCausalLM
from vllm_stand_in import StandIn

from spo.generation import vllm_colocate

MEAN = "sampling/sampling_logp_difference/mean"


class StandInLLM:
    """The part of `vllm.LLM` that is used, with the model it was named behind it."""

    def __init__(self, **settings):
        self.settings, self.asleep, self.naps, self.adapters = settings, False, 0, {}
        self.base = settings["model"]

    def sleep(self, level):
        self.asleep, self.naps = True, self.naps + 1

    def wake_up(self):
        self.asleep = False

    def generate(self, prompts, sampling, lora_request, use_tqdm):
        assert not self.asleep
        key = lora_request.lora_int_id
        if key not in self.adapters:  # an id that is known is not read again
            base = LlamaForCausalLM.from_pretrained(self.base)
            model = PeftModel.from_pretrained(base, lora_request.lora_path)
            self.adapters[key] = StandIn(model.eval())
        server = self.adapters[key]
        server.adapters = {"": server.base}
        outputs = []
        for prompt, params in zip(prompts, sampling, strict=True):
            said = server.complete(model="", prompt=prompt["prompt_token_ids"], **vars(params))
            ids, logprobs = said["token_ids"], said["logprobs"]["token_logprobs"]
            steps = [{i: SimpleNamespace(logprob=x)} for i, x in zip(ids, logprobs, strict=True)]
            completion = SimpleNamespace(token_ids=tuple(ids), logprobs=steps)
            outputs.append(SimpleNamespace(outputs=[completion]))
        return outputs


@pytest.fixture
def installed(monkeypatch):
    """A Python in which `import vllm` finds the stand-in."""
    package, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = StandInLLM, SimpleNamespace
    request.LoRARequest = lambda name, key, path: SimpleNamespace(
        lora_name=name, lora_int_id=key, lora_path=path
    )
    modules = {"vllm": package, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": request}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_colocate, "check_installed", lambda: None)


def make_trainer(folder, **given):
    settings = {"max_steps": 2, "learning_rate": 0.01, "temperature": 0.8}
    settings["peft_config"] = LoraConfig(**runs.LORA)
    model = given.pop("model", None) or runs.folder(folder / "model")
    return runs.make_trainer(
        folder / "run", model, use_vllm=True, vllm_mode="colocate", **settings | given
    )


def means(folder):
    return [line[MEAN] for line in runs.metrics_of(folder / "run") if MEAN in line]


def test_every_step_samples_from_the_policy_as_it_is(installed, tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=runs.prompts(3))
    before = runs.weights_of(trainer)
    trainer.train()
    assert max(means(tmp_path)) < 1e-5
    assert runs.largest_difference(before, runs.weights_of(trainer)) > 0.1
    engine = trainer.generator.llm
    assert len(engine.adapters) == 3  # before each step, and for the evaluation after the last
    assert engine.naps == 0


def test_an_adapter_that_stays_behind_is_seen(installed, tmp_path):
    """The control: an id that vLLM knows already keeps it from reading the new adapter."""
    trainer = make_trainer(tmp_path, learning_rate=0.001)
    type(trainer.generator).loads = property(lambda self: 1, lambda self, value: None)
    try:
        trainer.train()
    finally:
        del type(trainer.generator).loads
    first, second = means(tmp_path)
    assert first < 1e-5
    assert second > 1e-3


def test_it_sleeps_while_the_policy_is_updated(installed, tmp_path):
    trainer = make_trainer(tmp_path, vllm_enable_sleep_mode=True)
    engine = trainer.generator.llm
    assert engine.asleep  # from the start
    trainer.train()
    assert engine.naps == 3
    assert engine.asleep


def test_what_vllm_is_started_with(installed, tmp_path):
    config = {"r": 9, "rank_pattern": {"q_proj": 20}}
    trainer = make_trainer(
        tmp_path,
        peft_config=LoraConfig(**runs.LORA | config),
        vllm_gpu_memory_utilization=0.4,
        vllm_max_model_length=128,
        vllm_tensor_parallel_size=2,
    )
    settings = trainer.generator.llm.settings
    expected = {
        "model": str(tmp_path / "model"),
        "dtype": "float32",
        "enable_lora": True,
        "max_lora_rank": 32,
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": 0.4,
        "max_model_len": 128,
        "tensor_parallel_size": 2,
    }
    assert {name: settings[name] for name in expected} == expected


def test_a_model_in_memory_is_refused(installed, tmp_path):
    with pytest.raises(ValueError, match="give SPOTrainer the name of the model"):
        make_trainer(tmp_path, model=runs.policy())


def test_what_vllm_refuses_is_one_sentence(installed, tmp_path, monkeypatch):
    def refuse(**settings):
        raise ValueError(
            "1 validation error for ModelConfig\n  Value error, Sleep mode is not supported on "
            "current platform. [type=value_error, input_value=ArgsKwargs(())]\n  For further ..."
        )

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    sentence = "^vLLM refuses these settings: Sleep mode is not supported on current platform.$"
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tmp_path, vllm_enable_sleep_mode=True)


def test_without_vllm_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {})
    with pytest.raises(ValueError, match=r"pip install 'spo\[vllm\]'.*vllm_mode='server'"):
        make_trainer(tmp_path)


def test_a_transformers_that_vllm_cannot_live_with(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"vllm": ["vllm"]})
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["numpy", "transformers<4.0,>=3.0"]
    )
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.32.0" if name == "vllm" else version(name)
    )
    with pytest.raises(ValueError, match=r"vllm 0.32.0 asks for transformers.*is installed"):
        make_trainer(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="no vLLM beside this Transformers"
)
def test_vllm_itself(tmp_path, monkeypatch):
    """Run it with the Python that has both: docs/engines.md."""
    for name in ("TORCHDYNAMO_DISABLE", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    model = tiny_llama(hidden_size=128)  # heads of width 32, the smallest that vLLM takes
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    model.generation_config.eos_token_id = [EOS, *range(40)]
    settings = {"vllm_max_model_length": 128, "eval_dataset": runs.prompts(3), "max_steps": 3}
    trainer = make_trainer(tmp_path, model=runs.folder(tmp_path / "wide", model), **settings)
    before = runs.weights_of(trainer)
    trainer.train()
    assert len(means(tmp_path)) == 3
    assert max(means(tmp_path)) < 1e-4
    assert runs.largest_difference(before, runs.weights_of(trainer)) > 0.1
