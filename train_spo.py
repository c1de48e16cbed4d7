"""Flags -> models, data, rewards -> SPOTrainer -> a saved model. The one script.

    accelerate launch train_spo.py                                   # the quickstart recipe
    accelerate launch train_spo.py --config recipes/gsm8k.yaml --learning_rate 1e-5

Every field of SPOConfig and of the classes below is a flag; --help lists them.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spo.cli import Parser
from spo.config import SPOConfig
from spo.options import check_types, option

HERE = Path(__file__).resolve().parent
QUICKSTART = HERE / "recipes" / "quickstart.yaml"

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
        "Type of the loaded weights; None: bfloat16 for a frozen base under --bf16, else float32.",
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

    def __post_init__(self):
        check_types(self)


def main(argv: list[str]) -> None:
    parser = Parser((ModelArguments, ScriptArguments, SPOConfig), prog="train_spo.py")
    try:
        model_args, script_args, args = parser.parse(argv, default_recipe=QUICKSTART)
        _check_required(model_args, script_args)
        if script_args.estimate_memory:
            print(estimate(model_args, args).table())
            return
        trainer = build_trainer(model_args, script_args, args)
    except ValueError as error:  # wrong settings are the person's to mend: no traceback
        parser.error(str(error))
    from spo.rewards.functions import RewardError
    from spo.run.reporter import closing_words

    trainer.run_details |= {
        "dataset": script_args.dataset_name,
        "reward_functions": ", ".join(script_args.reward_funcs),
        "command": f"accelerate launch {shlex.join(['train_spo.py', *argv])}",
    }
    try:
        trainer.train()
    except RewardError as error:
        if error.__cause__ is not None:  # the traceback of the person's own code
            raise
        parser.error(str(error))
    reporter = trainer.run.reporter
    has_network = trainer.critic.network is not None
    reporter.print(closing_words(trainer.output_dir, reporter.evaluations, has_network))


def _check_required(model_args: ModelArguments, script_args: ScriptArguments) -> None:
    needed = {"model_name_or_path": model_args.model_name_or_path}
    if not script_args.estimate_memory:
        needed["dataset_name"] = script_args.dataset_name
        needed["reward_funcs"] = script_args.reward_funcs
    for name, value in needed.items():
        if not value:
            raise ValueError(f"--{name} is missing; give it on the command line or in --config.")


def build_trainer(model_args: ModelArguments, script_args: ScriptArguments, args: SPOConfig):
    """Load the data the flags name, and give everything to SPOTrainer."""
    train_dataset, eval_dataset = (
        split and as_prompts(split, script_args) for split in load_data(script_args)
    )

    import torch

    from spo import SPOTrainer
    from spo.networks.loading import quantization_config
    from spo.run.folder import find_checkpoint, refuse_another_run

    if args.output_dir and not (args.resume_from_checkpoint or args.overwrite_output_dir):
        refuse_another_run(Path(args.output_dir))
    if args.resume_from_checkpoint:
        find_checkpoint(Path(args.output_dir or "runs"), args.resume_from_checkpoint)
    args.model_init_kwargs = model_args.loading(args)
    if torch.cuda.is_available() and not args.use_cpu:
        check_card(model_args, args, torch.cuda.get_device_properties(0).total_memory)
    quantization = quantization_config(
        model_args.bits,
        model_args.bnb_4bit_quant_type,
        model_args.use_bnb_nested_quant,
        args.compute_dtype,
    )
    return SPOTrainer(
        model=_resolve(model_args.model_name_or_path),
        reward_funcs=script_args.reward_funcs,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config_of(model_args),
        quantization_config=quantization,
    )


def peft_config_of(model_args: ModelArguments):
    """The LoRA settings the flags describe; None without --use_peft, and for a model that is an
    adapter already."""
    from spo.networks.loading import is_adapter, lora_config

    if not model_args.use_peft or is_adapter(_resolve(model_args.model_name_or_path)):
        return None
    return lora_config(
        model_args.lora_r,
        model_args.lora_alpha,
        model_args.lora_dropout,
        model_args.lora_target_modules,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
    )


def estimate(model_args: ModelArguments, args: SPOConfig):
    """The memory the run would need."""
    from spo.networks.memory import estimate_run

    return estimate_run(
        _resolve(model_args.model_name_or_path),
        args,
        peft_config_of(model_args),
        bits=model_args.bits,
        nested=model_args.use_bnb_nested_quant,
        loading=model_args.loading(args),
    )


def check_card(model_args: ModelArguments, args: SPOConfig, card_bytes: int) -> None:
    """Stop before weights are loaded where the plan is beyond the card."""
    from spo.networks.memory import UnpredictableModelError

    try:
        plan = estimate(model_args, args)
    except UnpredictableModelError as error:
        warnings.warn(str(error), stacklevel=2)
    else:
        plan.check_card(card_bytes)


def load_data(script_args: ScriptArguments):
    """Training and evaluation data; those of reasoning_gym share no problem."""
    from spo.data import load_dataset_by_name
    from spo.problems import PREFIX, load_reasoning_gym_splits

    name, options = script_args.dataset_name, dict(script_args.dataset_kwargs)
    if name.startswith(PREFIX):
        if script_args.eval_size == 0:
            return load_dataset_by_name(name, options=options), None
        return load_reasoning_gym_splits(name, options, script_args.eval_size)
    load = {"config": script_args.dataset_config, "options": options}
    train = load_dataset_by_name(name, split=script_args.dataset_train_split, **load)
    if script_args.dataset_test_split is None:
        return train, None
    return train, load_dataset_by_name(name, split=script_args.dataset_test_split, **load)


def as_prompts(dataset, script_args: ScriptArguments):
    """The prompts in column "prompt", as chat messages if there is a system prompt."""
    from spo.data import as_chat, require_column

    if script_args.prompt_column != "prompt":
        require_column(dataset, script_args.prompt_column)
        dataset = dataset.rename_column(script_args.prompt_column, "prompt")
    return as_chat(dataset, script_args.system_prompt) if script_args.system_prompt else dataset


def _resolve(name: str) -> str:
    """A path of the repository works from any folder, as the recipes name one."""
    return str(HERE / name) if not Path(name).exists() and (HERE / name).exists() else name


if __name__ == "__main__":
    main(sys.argv[1:])
