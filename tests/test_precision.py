"""spo.precision: what was asked for, and the device → what is computed in, and one sentence."""

import os
import subprocess
import sys

import pytest
import tiny_runs as runs
import torch

import train_spo
from spo import SPOConfig, precision
from spo.arguments import ModelArguments, ScriptArguments
from spo.cli import Parser
from spo.precision import cpu_has_bf16, resolve_precision

YES, NO = (lambda device: True), (lambda device: False)


@pytest.mark.parametrize(
    ("bf16", "fp16", "device", "has_bf16", "expected", "words"),
    [
        (False, False, "cpu", NO, "no", None),
        (False, False, "cuda", NO, "no", None),
        (True, False, "cpu", YES, "bf16", None),
        (True, False, "cpu", NO, "no", "computing in float32 instead of bf16"),
        (False, True, "cpu", YES, "no", "computing in float32 instead of fp16"),
        (False, True, "cpu", NO, "no", "computing in float32 instead of fp16"),
        (True, False, "cuda", YES, "bf16", None),
        (True, False, "cuda:1", NO, "fp16", "computing in fp16 instead of bf16"),
        (True, False, torch.device("cuda", 0), NO, "fp16", "no bfloat16 arithmetic"),
        (False, True, "cuda", NO, "fp16", None),
        (False, True, "cuda", YES, "fp16", None),
        (True, False, "mps", YES, "bf16", None),
        (True, False, "mps", NO, "fp16", "macOS 14: computing in fp16 instead of bf16"),
    ],
)
def test_what_the_device_lacks_is_replaced_in_one_sentence(
    bf16, fp16, device, has_bf16, expected, words
):
    resolved, message = resolve_precision(bf16, fp16, device, has_bf16)
    assert resolved == expected
    assert (message is None) == (words is None)
    if words:
        assert words in message
        assert "\n" not in message


def test_4_bit_products_of_the_script_run_in_what_the_device_has(tmp_path, monkeypatch):
    """A T4 under the recipe's bf16: float16, not bfloat16 number by number."""
    runs.script_inputs(tmp_path)
    asked = []
    monkeypatch.setattr("spo.networks.loading.quantization_config", lambda *a: asked.append(a))
    monkeypatch.setattr("spo.SPOTrainer", lambda **given: None)
    parser = Parser((ModelArguments, ScriptArguments, SPOConfig), prog="train_spo.py")
    flags = [*runs.script_flags(tmp_path / "run"), "--load_in_4bit", "--use_peft", "--bf16"]
    for has, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda has=has: has)
        train_spo.build_trainer(*parser.parse(flags))
        assert asked[-1][-1] == dtype


AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}
SKYLAKE = AVX2 | {"avx512_f": True}
ZEN4 = SKYLAKE | {"avx512_bf16": True}
SAPPHIRE_RAPIDS = ZEN4 | {"amx_bf16": True}
GRAVITON2, GRAVITON3 = ({"architecture": "aarch64", "neon": True, "bf16": b} for b in (False, True))


@pytest.mark.parametrize(
    ("capabilities", "capability", "onednn", "expected"),
    [
        (AVX2, "AVX2", False, False),
        (AVX2 | {"avx_ne_convert": True}, "AVX2", True, False),  # converts, computes in float32
        (SKYLAKE, "AVX512", True, False),
        (ZEN4, "AVX512", True, True),
        (ZEN4, "AVX512", False, False),
        (ZEN4, "AVX2", True, False),  # ATEN_CPU_CAPABILITY=avx2
        (SAPPHIRE_RAPIDS, "AVX512", True, True),
        (GRAVITON2, "DEFAULT", False, False),
        (GRAVITON3, "SVE256", True, True),
        ({}, "DEFAULT", True, False),
    ],
)
def test_which_cpus_have_bfloat16_arithmetic(
    capabilities, capability, onednn, expected, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert cpu_has_bf16.__wrapped__() is expected
    monkeypatch.setattr(precision, "cpu_has_bf16", cpu_has_bf16.__wrapped__)
    assert resolve_precision(True, False, "cpu")[0] == ("bf16" if expected else "no")


@pytest.mark.parametrize("supported", [True, False])
def test_a_card_is_asked_without_emulation(supported, monkeypatch):
    def asked(including_emulation):
        assert not including_emulation, "a T4 emulates bfloat16, slowly"
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", asked)
    assert resolve_precision(True, False, "cuda")[0] == ("bf16" if supported else "fp16")


def test_a_cpu_held_to_avx2_counts_as_one_without():
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    code = "from spo.precision import resolve_precision; print(resolve_precision(1, 0, 'cpu')[0])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | limits, capture_output=True, text=True
    )
    assert done.stdout.strip() == "no", done.stderr
