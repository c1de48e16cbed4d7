"""Settings by the names of TRL, Transformers and open-r1 -> SPO's, and what becomes of the rest.

Standard library only. A name that is a field of SPO's dataclasses means the same here; every other
one is renamed, accepted without effect, or refused with the reason. The parser, the reader of
recipes, `SPOConfig.from_trl`, the errors of `SPOConfig` and docs/trl.md go by these tables.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",
    "dataset_prompt_column": "prompt_column",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "reward_model_name_or_path": "reward_funcs",
    "streaming": "dataset_streaming",
    "torch_dtype": "dtype",
    "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    "vllm_max_model_len": "vllm_max_model_length",
    "warmup_ratio": "warmup_steps",
}
"""Their name -> ours; the value stays (`warmup_steps` below 1 is a ratio)."""

VALUES = {
    ("optim", "adamw_bnb_8bit"): "adamw_8bit",
    ("optim", "paged_adamw_bnb_8bit"): "paged_adamw_8bit",
    ("optim", "adamw_hf"): "adamw_torch",
    ("top_k", -1): 0,
    ("scale_rewards", "true"): "group",
    ("scale_rewards", "false"): "none",
    ("scale_rewards", "True"): "group",
    ("scale_rewards", "False"): "none",
}
"""(setting, their value) -> ours."""

_IDLE = {
    "prompts are tokenised once and stay in memory": """
        dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataset_num_proc
        dataloader_persistent_workers dataloader_prefetch_factor dataloader_in_order
        dataloader_multiprocessing_context group_by_length length_column_name label_names
        remove_unused_columns pad_to_multiple_of""",
    "whether to train is the call of train(), whether to evaluate eval_strategy": """
        do_train do_eval do_predict""",
    "an evaluation generates and rewards, in the precision of training": """
        bf16_full_eval fp16_full_eval prediction_loss_only eval_do_concat_batches
        eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics
        include_inputs_for_metrics""",
    "activations are recomputed without reentrance; the results are the same": """
        gradient_checkpointing_kwargs activation_checkpointing_kwargs""",
    "out of memory is met by smaller micro-batches": """
        auto_find_batch_size torch_empty_cache_steps""",
    "logits are never whole (logits_chunk_size); no other kernels are needed": """
        use_liger_kernel liger_kernel_config use_logits_to_keep""",
    "nothing is compiled": "torch_compile torch_compile_backend torch_compile_mode torchdynamo",
    "the sampler has its own cache and batches": """
        use_cache cache_implementation use_transformers_continuous_batching
        transformers_continuous_batching_config use_transformers_paged""",
    "metrics are in output_dir and in the trackers, whose project is run_name": """
        logging_dir project trackio_space_id trackio_bucket_id trackio_static_space_id wandb_entity
        wandb_project wandb_run_group wandb_log_unique_prompts log_unique_prompts log_multimodal
        log_on_each_node log_level_replica logging_nan_inf_filter include_num_input_tokens_seen
        include_tokens_per_second skip_memory_metrics debug""",
    "checkpoints are whole, in safetensors, on the main process, and a signal makes one": """
        save_only_model save_safetensors save_on_each_node enable_jit_checkpoint""",
    "the model is uploaded when training ends": """
        hub_strategy hub_always_push overwrite_hub_revision push_to_hub_revision""",
    "a step's prompts follow from its number, so a resumed run skips nothing": "ignore_data_skip",
    "the token mean is over all processes": "average_tokens_across_devices",
    "that is for accelerate launch": """
        ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
        ddp_backend ddp_timeout local_rank ds3_gather_for_generation fp16_opt_level
        half_precision_backend use_mps_device""",
    "the base's dropout is off": "disable_dropout",
    "weights reach vLLM as an adapter on disk or in its process": """
        vllm_group_port vllm_device vllm_dtype vllm_enable_prefix_caching""",
    "sync_ref_model is refused": "ref_model_mixup_alpha ref_model_sync_steps",
    "there is no entropy bonus": """
        entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target""",
    "4-bit products run in the precision of the run": """
        bnb_4bit_compute_dtype bnb_4bit_quant_storage""",
    "it belongs to a loss or a reward that is not offered": """
        vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg ignore_bias_buffers
        cosine_min_value_wrong cosine_max_value_wrong cosine_min_value_correct
        cosine_max_value_correct cosine_max_len repetition_n_grams repetition_max_penalty
        code_language max_completion_len soft_punish_cache""",
}
IDLE = {name: reason for reason, names in _IDLE.items() for name in names.split()}
"""Accepted and without effect -> why."""

FSDP2_LINE = "accelerate launch --config_file recipes/accelerate/fsdp2.yaml train_spo.py ..."
LAUNCH = "give it to accelerate launch, before the script's name"

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "deepspeed": (("",), f"models are sharded by FSDP2 instead: {FSDP2_LINE}"),
    "fsdp": (("", [], False), LAUNCH),
    "fsdp_config": (("", {}), LAUNCH),
    "accelerator_config": (("", {}), LAUNCH),
    "parallelism_config": ((), LAUNCH),
    "hub_token": ((), "it would be saved with the run; log in by `hf auth login` or HF_TOKEN"),
    "hub_revision": (("main",), "call trainer.push_to_hub(revision=...)"),
    "hub_model_revision": (("main",), "call trainer.push_to_hub(revision=...)"),
    "logging_strategy": (("steps",), "metrics are logged by steps; set logging_steps"),
    "eval_delay": ((0,), "evaluations are cheap beside training; set eval_steps"),
    "optim_args": ((), "set adam_beta1, adam_beta2, adam_epsilon or weight_decay"),
    "optim_target_modules": ((), "optimizers of chosen modules are not offered; try LoRA"),
    "label_smoothing_factor": ((0,), "there are no labels"),
    "neftune_noise_alpha": ((), "noise would make the sampled policy another one"),
    "train_sampling_strategy": (("random",), "set shuffle_dataset"),
    "full_determinism": ((False,), "call torch.use_deterministic_algorithms before training"),
    "restore_callback_states_from_checkpoint": ((False,), "callbacks begin anew"),
    "router_aux_loss_coef": ((0,), "a router's auxiliary loss is not part of the policy's"),
    "cast_lm_head_to_fp32": ((False,), "set dtype to float32"),
    "sync_ref_model": ((False,), "the reference stays what training began with"),
    "top_entropy_quantile": ((1,), "all tokens are trained; entropy_percentile cuts at such ones"),
    "entropy_coef": ((0,), "there is no entropy bonus; raise beta or epsilon_high instead"),
    "use_adaptive_entropy": ((False,), "there is no entropy bonus"),
    "off_policy_mask_threshold": ((), "set delta, which bounds the ratio"),
    "log_completions_hub_repo": ((), "rollouts/ holds all completions; upload that folder"),
    "lora_target_parameters": ((), "only in Python, by peft_config"),
    "lora_task_type": (("CAUSAL_LM",), "a policy is a causal language model"),
    "chat_template": ((), "save it with the tokenizer"),
    "tokenizer_name_or_path": ((), "the model's is used; in Python give a processing_class"),
    "dataset_mixture": ((), "make one data set of them first"),
    "vllm_model_impl": (("vllm", "auto"), "vLLM's own implementation is what is tested"),
    "vllm_structured_outputs_regex": ((), "it would sample from another policy"),
    "vllm_guided_decoding_regex": ((), "it would sample from another policy"),
    "callbacks": (([],), "give SPOTrainer callbacks in Python"),
    "benchmarks": (([],), "evaluate the saved model"),
}
"""Their name -> values that change nothing (None is always one), and why any other is refused."""

OTHER_DEFAULTS: dict[str, tuple[Any, str]] = {
    "bf16": (None, "TRL means true; float32 until it is asked for, as the recipes do"),
    "dataset_test_split": ("test", "not every data set has one"),
    "disable_tqdm": (None, "the same: a bar where there is a terminal"),
    "dtype": ("float32", "bfloat16 for a frozen base under bf16, else float32"),
    "eval_on_start": (False, "what a run gained shows against its start"),
    "eval_steps": (None, "before the first and after the last step, until more is asked for"),
    "eval_strategy": ("no", "an eval_dataset is given to be used"),
    "gradient_checkpointing": (True, "a third slower; the recipes for cards set it"),
    "log_completions": (False, "reading completions shows most faults of a reward"),
    "logging_steps": (10, "the curves and the inspector show every step"),
    "lora_dropout": (0.05, "with dropout the first ratio is not 1"),
    "max_completion_length": (512, "what short answers need; the recipes set it"),
    "num_completions_to_print": (None, "a table that fits a terminal"),
    "num_generations_eval": (None, "the most likely completion, at eval_temperature 0"),
    "num_train_epochs": (3.0, "one pass over the prompts, until more is asked for"),
    "optim": ("adamw_torch_fused", "the same steps; fused where it is asked for"),
    "per_device_eval_batch_size": (8, "an evaluation keeps no activations"),
    "report_to": ("none", "the same, as a list"),
    "save_steps": (500, "save_minutes makes a checkpoint every quarter of an hour"),
    "use_bias_correction_kl": (True, "k3 as in the paper, until it is asked for"),
}
"""Same name and meaning, other default: that of TRL 1.16, and why ours differs."""

_SAME = """
    adam_beta1 adam_beta2 adam_epsilon attn_implementation beta bnb_4bit_quant_type
    chat_template_kwargs data_seed dataset_config dataset_name dataset_streaming dataset_train_split
    delta epsilon
    epsilon_high fp16 generation_batch_size generation_kwargs gradient_accumulation_steps
    greater_is_better hub_model_id hub_private_repo importance_sampling_level learning_rate
    load_best_model_at_end load_in_4bit load_in_8bit log_level logging_first_step lora_alpha
    lora_modules_to_save lora_r lora_target_modules loss_type lr_scheduler_kwargs
    lr_scheduler_type mask_truncated_completions max_grad_norm max_tool_calling_iterations
    max_steps metric_for_best_model min_p model_init_kwargs model_name_or_path model_revision
    multi_objective_aggregation num_generations num_iterations output_dir
    per_device_train_batch_size push_to_hub repetition_penalty resume_from_checkpoint reward_funcs
    reward_weights run_name sapo_temperature_neg sapo_temperature_pos save_strategy
    save_total_limit scale_rewards seed shuffle_dataset steps_per_generation temperature tf32
    top_k top_p trust_remote_code use_bnb_nested_quant use_cpu use_dora use_peft use_rslora
    use_vllm vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_importance_sampling_clip_max
    vllm_importance_sampling_clip_min vllm_importance_sampling_correction
    vllm_importance_sampling_mode vllm_max_model_length vllm_mode vllm_server_base_url
    vllm_server_host vllm_server_port vllm_server_timeout vllm_tensor_parallel_size warmup_steps
    weight_decay
"""
SAME = _SAME.split()
"""Same name, meaning and default as in TRL 1.16."""

MEANT = {
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "critic": "value_model_path",
    "value_model": "value_model_path",
    "dataset": "dataset_name",
    "data": "dataset_name",
    "reward": "reward_funcs",
    "rewards": "reward_funcs",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "output": "output_dir",
    "resume": "resume_from_checkpoint",
    "lora": "use_peft",
    "qlora": "load_in_4bit",
    "lora_rank": "lora_r",
    "kl_coef": "beta",
    "clip_range": "epsilon",
    "lambda": "lam",
    "recipe": "config",
}
"""What other programs call a setting -> what it is called here, for hints."""

IN_PYTHON = {
    ("use_peft", "lora_", "use_rslora", "use_dora"): "give SPOTrainer a peft_config",
    ("load_in_", "bnb_4bit", "use_bnb"): "give SPOTrainer a quantization_config",
    ("dtype", "torch_dtype", "attn_", "trust_", "model_revision"): "put it into model_init_kwargs",
    ("tokenizer", "processing_class"): "give SPOTrainer a processing_class",
    ("model", "ref_model"): "give SPOTrainer a model",
    ("dataset", "prompt_column", "system_prompt"): "give SPOTrainer a train_dataset",
    ("reward_funcs", "reward_model"): "give SPOTrainer reward_funcs",
}
"""How settings of the script begin that are no fields of SPOConfig -> what to do in Python."""

MADE_BY_OTHERS = ("dataloader_pin_memory",)
"""What a GRPOConfig changes by itself."""

LAUNCHER = ("num_processes", "num_machines", "gpu_ids", "multi_gpu", "fsdp")
"""How settings of `accelerate launch` begin."""


@dataclass
class Translation:
    """What became of some settings.

    Attributes:
        settings: by SPO's names.
        idle: names that are accepted and have no effect.
        problems: name -> what to do about one that is refused or unknown.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    def __or__(self, other: Translation) -> Translation:
        """Both, where the other's settings win."""
        return Translation(
            self.settings | other.settings,
            list(dict.fromkeys(self.idle + other.idle)),
            self.problems | other.problems,
        )

    def summary(self) -> str:
        """One line about what has no effect, "" where all has."""
        return f"Without effect here (docs/trl.md): {', '.join(self.idle)}." if self.idle else ""


def translate(given: dict[str, Any], fields: Collection[str]) -> Translation:
    """Settings by anybody's names -> those of `fields`.

    >>> translate({"warmup_ratio": 0.1, "dataloader_num_workers": 4, "lr": 1.0}, ["warmup_steps"])
    Translation(settings={'warmup_steps': 0.1}, idle=['dataloader_num_workers'], \
problems={'lr': '--help lists all'})
    """
    done = Translation()
    for name, value in given.items():
        if name in fields:
            done.settings[name] = our_value(name, value)
    for name, value in given.items():
        if name in fields or is_harmless(name, value):
            continue
        ours = RENAMED.get(name)
        if ours in fields:
            _rename(done, name, ours, value)
        elif name in IDLE:
            done.idle.append(name)
        else:
            done.problems[name] = advice(str(name), fields)
    return done


def _rename(done: Translation, name: str, ours: str, value: Any) -> None:
    """Under our name, unless that is given and says something else."""
    if not done.settings.get(ours):
        done.settings[ours] = value
    elif ours == "reward_funcs":
        done.settings[ours] = [value, *_as_list(done.settings[ours])]
    elif value and value != done.settings[ours]:
        done.problems[name] = f"it is {ours} here, which is given, too"


def settings_of(config: Any, fields: Collection[str]) -> Translation:
    """Those of a dataclass of TRL or Transformers, which holds them all.

    Shared names keep its value, TRL's defaults included; of the others, what is set there.
    """
    given: dict[str, Any] = {}
    for theirs in dataclasses.fields(config):
        value = getattr(config, theirs.name)
        value = value.value if isinstance(value, enum.Enum) else value
        made = theirs.default_factory
        default = theirs.default if made is dataclasses.MISSING else made()
        untouched = dataclasses.is_dataclass(value) and value == type(value)()
        untouched |= value == [] or theirs.name in MADE_BY_OTHERS
        if (theirs.name in fields and value is not None) or value not in (None, default):
            given |= {} if untouched else {theirs.name: value}
    if given.get("generation_batch_size"):  # GRPOConfig computes one from the other
        given.pop("steps_per_generation", None)
    if not given.get("beta"):  # true by default there, and of no effect without a penalty
        given.pop("use_bias_correction_kl", None)
    if given.pop("trust_remote_code", False):
        given["model_init_kwargs"] = {"trust_remote_code": True} | given.get(
            "model_init_kwargs", {}
        )
    return translate(given, fields)


def refuse_unknown(cls: type, names: Collection[str], fields: Collection[str]) -> None:
    """Of keyword arguments, before Python does it without saying what was meant.

    Raises:
        TypeError: names that are no fields, each with what to write instead.
    """
    unknown = [name for name in names if name not in fields]
    if unknown:
        advised = (f"{n} ({advice(n, fields, 'docs/flags.md lists all')})" for n in unknown)
        raise TypeError(f"{cls.__name__} has no {', no '.join(advised)}.")


def advice(name: str, fields: Collection[str], otherwise: str = "--help lists all") -> str:
    """What to write instead of a name that is no field: a clause of an error sentence."""
    if "model_name_or_path" not in fields:
        for beginnings, what in IN_PYTHON.items():
            if name.startswith(beginnings):
                return what
    if name in REFUSED:
        return REFUSED[name][1]
    if (ours := RENAMED.get(name)) is not None:
        return f"it is {ours} here" if ours in fields else f"{ours} of the script"
    if name in IDLE:
        return f"leave it out: {IDLE[name]}"
    if name.split(".")[0].startswith(LAUNCHER):
        return LAUNCH
    near = difflib.get_close_matches(name, fields, n=1)
    meant = MEANT.get(name) if MEANT.get(name) in fields else None
    meant = meant or (near[0] if near else None)
    return f"did you mean {meant}?" if meant else otherwise


def is_known(name: str) -> bool:
    """These tables say what becomes of it."""
    return name in RENAMED or name in IDLE or name in REFUSED


def is_harmless(name: str, value: Any) -> bool:
    """A setting that is refused in general, at a value that asks for nothing."""
    return name in REFUSED and (value is None or value in REFUSED[name][0])


def our_value(name: str, value: Any) -> Any:
    """A value of a setting that has another name here.

    >>> our_value("optim", "adamw_bnb_8bit"), our_value("optim", "adafactor")
    ('adamw_8bit', 'adafactor')
    """
    return VALUES.get((name, value), value) if isinstance(value, str | int) else value


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
