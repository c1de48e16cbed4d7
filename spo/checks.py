"""Settings that do not fit together -> ValueError, one sentence each that says what to change.

Standard library only. `SPOConfig` calls `check_settings` when it is made.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from spo.options import check_bounds, nearest_hint

GENERATION_KWARGS = (
    *("top_k", "top_p", "min_p", "repetition_penalty"),
    *("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "sequence_bias"),
    *("no_repeat_ngram_size", "bad_words_ids", "min_new_tokens", "suppress_tokens"),
    *("begin_suppress_tokens", "exponential_decay_length_penalty"),
)
"""What `generation_kwargs` may hold."""
INTERVALS = ("logging_steps", "save_steps", "eval_steps")
"""Numbers of steps, or fractions of the run."""


def check_settings(args: Any) -> None:
    """All that can be known from an SPOConfig alone.

    Raises:
        ValueError: fields that are out of bounds, or clash.
    """
    _check_ranges(args)
    _check_combinations(args)
    _check_critic(args)
    _check_loss(args)
    _check_sampling(args)


def _check_ranges(args: Any) -> None:
    check_bounds(args)
    for name in INTERVALS:
        if (value := getattr(args, name)) > 1 and value != int(value):
            raise ValueError(
                f"{name}={value} is neither a whole number of steps nor a fraction below 1."
            )
    try:
        re.compile(args.segment_delimiter)
    except re.error as error:
        raise ValueError(
            f"segment_delimiter={args.segment_delimiter!r} is no regular expression: {error}."
        ) from None


def _check_combinations(args: Any) -> None:
    if args.bf16 and args.fp16:
        raise ValueError("bf16 and fp16 are both set; choose one.")
    if args.generation_batch_size is not None and args.steps_per_generation is not None:
        raise ValueError(
            "generation_batch_size and steps_per_generation say the same thing; set one."
        )
    if args.segment_value != "start" and args.advantage_level == "token":
        raise ValueError(
            f"segment_value={args.segment_value!r} needs advantage_level='segment': token "
            "advantages use the value of every token."
        )
    if args.value_load_in_4bit and args.value_load_in_8bit:
        raise ValueError("value_load_in_4bit and value_load_in_8bit are both set; choose one.")
    if args.reward_load_in_4bit and args.reward_load_in_8bit:
        raise ValueError("reward_load_in_4bit and reward_load_in_8bit are both set; choose one.")
    if (args.value_load_in_4bit or args.value_load_in_8bit) and not args.value_use_peft:
        raise ValueError("Quantised critic weights cannot be trained; add value_use_peft.")
    if args.value_use_peft and args.value_model_path in (None, "policy"):
        raise ValueError(
            "value_use_peft is for a critic named by path or id; value_model_path='policy' "
            "takes the policy's LoRA settings."
        )
    if args.kl_in_reward and args.beta == 0:
        raise ValueError("kl_in_reward needs beta > 0; with beta=0 there is no KL to subtract.")
    low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
    if None not in (low, high) and low > high:
        raise ValueError(
            f"vllm_importance_sampling_clip_min={low} is above "
            f"vllm_importance_sampling_clip_max={high}."
        )
    if args.push_to_hub and args.output_dir is None and args.hub_model_id is None:
        raise ValueError("push_to_hub needs hub_model_id or output_dir to name the repository.")
    if args.load_best_model_at_end and args.eval_strategy == "no":
        raise ValueError("load_best_model_at_end needs evaluations; set eval_strategy to steps.")
    if args.num_generations_eval > 1 and args.eval_temperature == 0:
        warnings.warn(
            f"num_generations_eval={args.num_generations_eval}: at eval_temperature 0 all "
            "completions of a prompt are the same.",
            stacklevel=5,
        )
    if args.entropy_percentile > 0.5:
        warnings.warn(
            f"entropy_percentile={args.entropy_percentile}: more than half of all tokens start "
            "a segment, which is closer to PPO than to SPO.",
            stacklevel=5,
        )
    if args.gamma < 1:
        warnings.warn(
            f"gamma={args.gamma} discounts once per segment, so uncertain completions, which "
            "have more segments, are discounted more.",
            stacklevel=5,
        )


def _check_critic(args: Any) -> None:
    """What value sources need of each other."""
    sources = set(args.regression_sources)
    for name, needed in (
        ("value_sources", sources & {"reference", "rest", "hint"}),
        ("value_prompt", {"reference"} & {args.value_prompt}),
    ):
        if needed and not args.value_reference:
            raise ValueError(
                f"{name}={', '.join(sorted(needed))} needs value_reference: a column of the "
                "data set, 'peer' or 'memory'."
            )
    if args.value_sources and args.value_features == "surprisal":
        raise ValueError(
            "value_features is the older name of value_sources; set value_sources alone."
        )
    reads_siblings = "peers" in sources or "peer" in (args.value_reference or [])
    if reads_siblings and args.num_generations < 2:
        raise ValueError(
            "The critic cannot read siblings ('peers', 'peer') with num_generations=1: there "
            "are none. Set it to 2 or more, or value_reference to 'memory'."
        )
    if args.value_prompt == "reference" and not args.use_value_network:
        raise ValueError("value_prompt='reference' needs a critic network.")
    if "{reference}" not in args.value_reference_prompt:
        raise ValueError("value_reference_prompt has no {reference} in it.")


def _check_sampling(args: Any) -> None:
    unknown = [name for name in args.generation_kwargs or {} if name not in GENERATION_KWARGS]
    if "temperature" in unknown:
        raise ValueError(
            "generation_kwargs holds temperature, which log-probs are taken at, too; set "
            "temperature itself."
        )
    if unknown:
        hint = nearest_hint(unknown[0], GENERATION_KWARGS)
        raise ValueError(
            f"generation_kwargs holds {', '.join(map(str, unknown))}{hint}; it may hold "
            f"{', '.join(GENERATION_KWARGS)}."
        )


def _check_loss(args: Any) -> None:
    upper = 1 + (args.epsilon if args.epsilon_high is None else args.epsilon_high)
    if args.delta is not None and args.delta <= upper:
        raise ValueError(
            f"delta={args.delta} must exceed 1 + epsilon_high = {upper}, or it clips before "
            "the ratio does."
        )
    if args.loss_type == "cispo" and args.epsilon_high is None:
        raise ValueError(
            "loss_type='cispo' bounds the ratio itself by epsilon_high; set it, to 5.0 as "
            "ScaleRL does."
        )
    if args.loss_type in ("cispo", "sapo") and args.delta is not None:
        raise ValueError(
            f"loss_type={args.loss_type!r} has no second clip: leave delta out, or use 'dapo'."
        )
    if args.use_bias_correction_kl and args.kl_in_reward:
        raise ValueError(
            "use_bias_correction_kl is of the KL in the loss, and kl_in_reward takes it out of "
            "there; set one of them."
        )
    if args.multi_objective_aggregation == "normalize_then_sum" and args.kl_in_reward:
        raise ValueError(
            "multi_objective_aggregation='normalize_then_sum' scales reward functions, and the "
            "KL of kl_in_reward is none; set kl_in_reward to false."
        )
