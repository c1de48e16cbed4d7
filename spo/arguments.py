"""What the script may be told besides SPOConfig: the model, its adapter, data and rewards.

Standard library only, as `--help` needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from spo.config import SPOConfig
from spo.options import check_bounds, check_types, option

MODEL, LORA, QUANTISATION, DATA = "model", "LoRA", "quantisation", "data and rewards"


@dataclass
class ModelArguments:
    """The model and how it is loaded; names of TRL's ModelConfig."""

    model_name_or_path: str | None = option(
        None, "Policy: path or hub id of a causal language model or of an adapter.", MODEL
    )
    model_revision: str = option("main", "Branch, tag or commit on the hub.", MODEL)
    trust_remote_code: bool = option(False, "Run model code that lives on the hub.", MODEL)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = option(
        None,
        "Type of the loaded weights; None: a frozen base --bf16's or --fp16's, else float32.",
        MODEL,
    )
    attn_implementation: str | None = option(
        None, "sdpa, eager, flash_attention_2, ...; None: the model's default.", MODEL
    )
    use_peft: bool = option(
        False,
        "Train a LoRA adapter instead of all weights; a model that is one keeps its settings.",
        LORA,
    )
    lora_r: int = option(16, "Rank.", LORA)
    lora_alpha: int = option(32, "Scale: the adapter's output is multiplied by alpha / r.", LORA)
    lora_dropout: float = option(0.0, "Dropout on the adapter's input.", LORA)
    lora_target_modules: list[str] | None = option(
        None, "Names of linear layers; None: all of them but the head.", LORA
    )
    lora_modules_to_save: list[str] | None = option(
        None, "Names of modules that are trained whole beside the adapter.", LORA
    )
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r).", LORA)
    use_dora: bool = option(False, "Weight-decomposed LoRA.", LORA)
    load_in_8bit: bool = option(False, "Base weights in 8 bits (bitsandbytes).", QUANTISATION)
    load_in_4bit: bool = option(False, "Base weights in 4 bits (bitsandbytes).", QUANTISATION)
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = option("nf4", "4-bit data type.", QUANTISATION)
    use_bnb_nested_quant: bool = option(
        False, "Quantise the quantisation constants, too.", QUANTISATION
    )

    def __post_init__(self):
        check_types(self)
        check_bounds(self)
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both set; choose one.")
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            raise ValueError("Quantised weights cannot be trained; add --use_peft.")

    @property
    def bits(self) -> int | None:
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    def loading(self, args: SPOConfig) -> dict[str, Any]:
        """What from_pretrained is told beyond its defaults; `model_init_kwargs` have the last
        word."""
        given = {
            "revision": self.model_revision,
            "trust_remote_code": self.trust_remote_code,
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
        }
        given = {key: v for key, v in given.items() if v not in (None, False, "main")}
        return given | (args.model_init_kwargs or {})


@dataclass
class ScriptArguments:
    """Data and rewards; names of TRL's ScriptArguments."""

    dataset_name: str | None = option(
        None,
        "reasoning_gym/<task>, a local .json/.jsonl/.csv/.parquet file or folder, or a hub id.",
        DATA,
    )
    dataset_config: str | None = option(None, "Configuration name of a hub data set.", DATA)
    dataset_train_split: str = option("train", "Split to train on.", DATA)
    dataset_test_split: str | None = option(
        None, "Split to evaluate on; None: no evaluation (reasoning_gym: see eval_size).", DATA
    )
    dataset_streaming: bool = option(
        False,
        "Read the data as it is needed instead of loading it first; needs max_steps.",
        DATA,
    )
    dataset_kwargs: dict[str, Any] = option(
        {}, "Options of the reasoning_gym task (size, seed, ...) or of load_dataset.", DATA
    )
    prompt_column: str = option("prompt", "Column that holds the prompts.", DATA)
    system_prompt: str | None = option(
        None, "System message put before every prompt; text prompts become the user's.", DATA
    )
    eval_size: int = option(200, "Held-out problems of a reasoning_gym task; 0: none.", DATA)
    reward_funcs: list[str] | None = option(
        None,
        "Each one of: reasoning_gym, math_verify, format, soft_overlong, package.module:function, "
        "or a path or hub id of a reward model.",
        DATA,
    )
    estimate_memory: bool = option(
        False,
        "Print the predicted peak memory by part and which cards it fits, from the model's config "
        "alone, and leave.",
        MODEL,
    )
    dry_run: bool = option(
        False,
        "Try one step of everything (sample, score, update, evaluate, save) in a folder that is "
        "thrown away, print what a step and the run will take, and leave.",
        MODEL,
    )

    def __post_init__(self):
        check_types(self)
        check_bounds(self)
