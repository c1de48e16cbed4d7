"""A tiny model learns when to use a calculator: tools, multi-turn, on a CPU in minutes.

The embedded quickstart model adds by itself and slips in half of its answers. First it is shown how
a call is written, in one demonstration of `--shown` of all; then it is trained with SPO on whether
its answers are right, and nothing else. It finds out by itself that calling pays:

    python examples/calculator.py
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone need not be installed

from spo import SPOConfig, SPOTrainer  # noqa: E402
from spo.data import load_dataset_by_name  # noqa: E402

MODEL = ROOT / "assets" / "quickstart"
SUMS = {"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1}

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- call.function.name + '[' + call.function.arguments.values() | join + ']' }}
{%- endfor %}
{{- eos_token if message.role == 'assistant' }}{{- '\\n' }}
{%- endfor %}
{{- '>' if add_generation_prompt }}"""

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ">",
    "fields": {
        "tool_calls": {
            "open_pattern": r"(?P<name>[a-z]+)\[",
            "close": "]",
            "repeats": True,
            "content": "text",
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": {"terms": "{content}"}},
            },
        },
        "content": {"content": "text", "close": "<eos>"},
    },
}
"""How the template above writes a call, calc[3 + 4], for whoever reads one."""


def calc(terms: str) -> str:
    """Add and subtract whole numbers.

    Args:
        terms: such as 3 + 4 - 12
    """
    numbers = terms.replace(" ", "").replace("-", "+-").removeprefix("+").split("+")
    return str(sum(map(int, numbers)))


def problems(size: int, seed: int):
    """Sums as chats; the columns that the verifier reads stay."""
    options = SUMS | {"size": size, "seed": seed}
    rows = load_dataset_by_name("reasoning_gym/chain_sum", options=options)
    chats = [[{"role": "user", "content": text}] for text in rows["prompt"]]
    return rows.remove_columns("prompt").add_column("prompt", chats)


# --- demonstrations -------------------------------------------------------------------------------


def ask(tokenizer, messages: list[dict]) -> str:
    """The chat as text, up to where the model speaks."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def with_calculator(tokenizer, prompt: list[dict]) -> str:
    """What follows the prompt where the calculator is called: call, its answer, conclusion."""
    expression = prompt[0]["content"].split(": ")[-1].removesuffix(" =")
    call = {"name": "calc", "arguments": {"terms": expression}}
    answer = calc(expression)
    messages = [
        *prompt,
        {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": "calc", "content": answer},
    ]
    behind = ask(tokenizer, messages).removeprefix(prompt[0]["content"] + "\n")
    return f">{behind}<answer>{answer}</answer>{tokenizer.eos_token}"


@torch.no_grad()
def without_calculator(model, tokenizer, prompts: list[list[dict]]) -> list[str]:
    """What the model itself writes to each prompt, behind the template's mark."""
    texts = [prompt[0]["content"] for prompt in prompts]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    ids = model.generate(**inputs, do_sample=True, max_new_tokens=64)
    solutions = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    return [f">{text.split(tokenizer.eos_token)[0]}{tokenizer.eos_token}" for text in solutions]


def teach(model, tokenizer, prompts: list[list[dict]], shown: float, steps: int) -> float:
    """Imitate demonstrations: `shown` of them with a call, the others the model's own solutions."""
    rng = random.Random(0)
    own = without_calculator(model, tokenizer, prompts)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        rows, labels = [], []
        for i in rng.choices(range(len(prompts)), k=32):
            calls = rng.random() < shown
            solution = with_calculator(tokenizer, prompts[i]) if calls else own[i]
            question = tokenizer(prompts[i][0]["content"] + "\n")["input_ids"]
            said = tokenizer(solution)["input_ids"]
            rows.append(torch.tensor(question + said))
            labels.append(torch.tensor([-100] * len(question) + said))
        ids = pad_sequence(rows, batch_first=True)
        wanted = pad_sequence(labels, batch_first=True, padding_value=-100)
        loss = model(input_ids=ids, labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shown", type=float, default=0.25, help="demonstrations with a call")
    parser.add_argument("--teach_steps", type=int, default=500, help="steps of imitation")
    parser.add_argument("--max_steps", type=int, default=30, help="steps of SPO")
    parser.add_argument("--output_dir", default="runs/calculator")
    args = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template, tokenizer.response_template = CHAT_TEMPLATE, RESPONSE_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    train = problems(2000, seed=1)
    loss = teach(model, tokenizer, train["prompt"][:500], args.shown, args.teach_steps)
    print(f"imitated: loss {loss:.3f}")

    config = SPOConfig(
        output_dir=args.output_dir,
        overwrite_output_dir=True,
        max_steps=args.max_steps,
        num_generations=8,
        per_device_train_batch_size=64,
        max_completion_length=96,
        max_tool_calling_iterations=2,
        entropy_percentile=0.2,
        lam=0.8,
        normalize_advantages=False,
        learning_rate=4e-4,
        value_learning_rate=3e-3,
        adam_beta2=0.95,
        lr_scheduler_type="constant",
        eval_temperature=1.0,
        per_device_eval_batch_size=250,
        use_cpu=True,
    )
    trainer = SPOTrainer(
        model,
        "reasoning_gym",
        config,
        train,
        problems(250, seed=100_000),
        tokenizer,
        value_model="policy",
        tools=[calc],
    )
    return trainer.train()


if __name__ == "__main__":
    main()
