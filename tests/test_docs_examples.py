"""The Python of README and docs runs as it stands, and prints what the pages say."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

import train_spo

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.S | re.M)


def expected_output(block: str) -> list[str]:
    """What the comments after, or under, each print say."""
    return re.findall(r"^print\(.*\)(?:  |\n)# (.+)$", block, flags=re.M)


def run(page: str, capsys) -> None:
    """Every block of a page, each on its own."""
    assert blocks(page)
    for block in blocks(page):
        capsys.readouterr()
        exec(compile(block, page, "exec"), {"__name__": "example"})
        printed = capsys.readouterr().out.strip().splitlines()
        expected = expected_output(block)
        if expected:
            assert [line.strip() for line in printed] == expected


class Judge(BaseHTTPRequestHandler):
    """Replies "8" to whatever is asked."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": "8"}}]}).encode())

    def log_message(self, *_):
        """Nothing on the terminal."""


@pytest.fixture
def judge(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "page", ["docs/method.md", "docs/metrics.md", "docs/rollouts.md", "docs/tools.md"]
)
def test_a_page_s_examples_print_what_it_says(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run(page, capsys)


@pytest.mark.parametrize("number", range(4))
def test_each_extension_is_a_complete_example(number, capsys, monkeypatch):
    """A reward, a segmentation rule, a value source and a generator, of at most 40 lines each."""
    examples = blocks("docs/extending.md")
    assert len(examples) == 4
    block = examples[number]
    assert len(block.splitlines()) <= 40
    monkeypatch.chdir(ROOT)
    exec(compile(block, f"extending {number}", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip().splitlines()[-1:] == expected_output(block)


@pytest.mark.usefixtures("judge")
def test_the_five_rewards_give_what_the_page_says(capsys):
    assert sum(map(len, map(expected_output, blocks("docs/rewards.md")))) == 5
    run("docs/rewards.md", capsys)


def test_data_training_and_the_trained_model_fit_together(tmp_path, capsys, monkeypatch):
    """data.md writes the file that the README trains on; trained_model.md uses what it leaves."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    run("docs/data.md", capsys)
    run("README.md", capsys)
    assert (tmp_path / "my-model" / "critic" / "config.json").is_file()
    train_an_adapter("my-run")
    run("docs/trained_model.md", capsys)
    merged = AutoModelForSequenceClassification.from_pretrained("my-critic")
    adapter = AutoPeftModelForSequenceClassification.from_pretrained("my-run/critic", num_labels=1)
    ids = torch.tensor([[5, 6, 7]])
    assert merged(ids).logits.item() == pytest.approx(adapter(ids).logits.item(), abs=1e-5)


def train_an_adapter(run: str) -> None:
    """Two steps of LoRA on the embedded model, with a critic on the same base."""
    flags = "--model_name_or_path=assets/quickstart --use_peft --value_model_path=policy"
    flags += " --dataset_name=my_problems.jsonl --reward_funcs=math_verify --max_steps=2"
    flags += " --per_device_train_batch_size=8 --num_generations=8 --max_completion_length=8"
    train_spo.main([*flags.split(), f"--output_dir={run}"])
