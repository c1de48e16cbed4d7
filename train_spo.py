"""Flags -> models, data, rewards -> SPOTrainer -> a saved model. The one script.

    accelerate launch train_spo.py                                   # the quickstart recipe
    accelerate launch train_spo.py --config recipes/gsm8k.yaml --learning_rate 1e-5

Every field of SPOConfig and of the classes below is a flag; --help lists them.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

from spo.arguments import ModelArguments, ScriptArguments
from spo.cli import Parser
from spo.config import SPOConfig

HERE = Path(__file__).resolve().parent
QUICKSTART = HERE / "recipes" / "quickstart.yaml"


def main(argv: list[str]) -> None:
    parser = Parser((ModelArguments, ScriptArguments, SPOConfig), prog="train_spo.py")
    try:
        model_args, script_args, args = parser.parse(argv, default_recipe=QUICKSTART)
        _check_required(model_args, script_args)
        if script_args.estimate_memory:
            print(estimate(model_args, args).table())
            return
        if parser.note and os.environ.get("RANK", "0") == "0":
            print(parser.note)
        if script_args.dry_run:
            try_out(parser, model_args, script_args, args)
            return
        trainer = build_trainer(model_args, script_args, args)
    except ValueError as error:  # wrong settings are the person's to mend: no traceback
        parser.error(str(error))
    from spo.run.reporter import closing_words

    trainer.run_details |= {
        "dataset": script_args.dataset_name,
        "reward_functions": ", ".join(script_args.reward_funcs),
        "command": f"accelerate launch {shlex.join(['train_spo.py', *argv])}",
    }
    with one_sentence(parser):
        trainer.train()
    reporter = trainer.run.reporter
    has_network = trainer.critic.network is not None
    reporter.print(closing_words(trainer.output_dir, reporter.evaluations, has_network))
    trainer.accelerator.state.destroy_process_group()


@contextmanager
def one_sentence(parser: Parser):
    """What ends a run is told without a traceback, unless it is one of the person's own code."""
    from spo.errors import RunFolderError, StoppedError
    from spo.rewards.functions import RewardError

    try:
        yield
    except RewardError as error:
        if error.__cause__ is not None:
            raise
        parser.error(str(error))
    except (RunFolderError, StoppedError) as error:
        parser.error(str(error))


def try_out(parser: Parser, model_args: ModelArguments, script_args: ScriptArguments, args) -> None:
    """One step of everything, in a folder that is thrown away."""
    from spo.run.rehearsal import rehearse

    with one_sentence(parser):
        rehearse(lambda small: build_trainer(model_args, script_args, small), args)


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
    from spo.launch import adopt_precision, check_launch

    check_launch()
    adopt_precision(args, args.mixed_precision)  # what is loaded and estimated goes by it
    train_dataset, eval_dataset = (
        split and as_prompts(split, script_args) for split in load_data(script_args)
    )

    from spo import SPOTrainer
    from spo.devices import free_memory, own_device
    from spo.networks.loading import quantization_config
    from spo.precision import computed_in
    from spo.run.checkpoint import refuse_without
    from spo.run.folder import chosen_dir, refuse_another_run

    if args.output_dir and not (args.resume_from_checkpoint or args.overwrite_output_dir):
        refuse_another_run(Path(args.output_dir))
    if args.resume_from_checkpoint:
        refuse_without(chosen_dir(args), args.resume_from_checkpoint)
    args.model_init_kwargs = model_args.loading(args)
    device = own_device(args.use_cpu)
    free = free_memory(device)
    if free is not None:
        check_card(model_args, args, free)
    quantization = quantization_config(
        model_args.bits,
        model_args.bnb_4bit_quant_type,
        model_args.use_bnb_nested_quant,
        computed_in(args.bf16, args.fp16, device),
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
        modules_to_save=model_args.lora_modules_to_save,
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


def check_card(model_args: ModelArguments, args: SPOConfig, free_bytes: int) -> None:
    """Stop before weights are loaded where the plan is beyond what the card has free."""
    from spo.networks.graph import UnpredictableModelError

    try:
        plan = estimate(model_args, args)
    except UnpredictableModelError as error:
        warnings.warn(str(error), stacklevel=2)
    else:
        plan.check_card(free_bytes)


def load_data(script_args: ScriptArguments):
    """Training and evaluation data; those of reasoning_gym share no problem."""
    from spo.data import load_dataset_by_name
    from spo.problems import PREFIX, load_reasoning_gym_splits

    name, options = script_args.dataset_name, dict(script_args.dataset_kwargs)
    streaming = script_args.dataset_streaming
    if name.startswith(PREFIX) and not streaming:
        if script_args.eval_size == 0:
            return load_dataset_by_name(name, options=options), None
        return load_reasoning_gym_splits(name, options, script_args.eval_size)
    load = {"config": script_args.dataset_config, "options": options, "streaming": streaming}
    train = load_dataset_by_name(name, split=script_args.dataset_train_split, **load)
    if script_args.dataset_test_split is None:
        return train, None
    return train, load_dataset_by_name(name, split=script_args.dataset_test_split, **load)


def as_prompts(dataset, script_args: ScriptArguments):
    """The prompts in column "prompt", as chat messages if there is a system prompt."""
    from spo.data import as_chat, require_column
    from spo.rows import columns_of

    if script_args.prompt_column != "prompt":
        require_column(dataset, script_args.prompt_column)
        if "prompt" in columns_of(dataset):
            words = (
                f"Column 'prompt' is left out: --prompt_column is {script_args.prompt_column!r}."
            )
            warnings.warn(words, stacklevel=2)
            dataset = dataset.remove_columns("prompt")
        dataset = dataset.rename_column(script_args.prompt_column, "prompt")
    kind = getattr(dataset.features.get("prompt"), "dtype", "")
    if kind.startswith(("int", "float")):  # what a CSV reader makes of "12"
        from datasets import Value

        dataset = dataset.cast_column("prompt", Value("string"))
    return as_chat(dataset, script_args.system_prompt) if script_args.system_prompt else dataset


def _resolve(name: str) -> str:
    """A path of the repository works from any folder, as the recipes name one."""
    return str(HERE / name) if not Path(name).exists() and (HERE / name).exists() else name


if __name__ == "__main__":
    main(sys.argv[1:])
