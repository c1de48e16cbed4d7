"""What a person may set -> `SPOConfig`, validated. Standard library only.

One flat dataclass. Names and meanings are those of TRL's GRPOConfig and Transformers'
TrainingArguments wherever they exist there. Each field's `help` is the only text about it:
`train_spo.py --help` and the README's table are made from it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from spo.checks import INTERVALS, check_settings
from spo.options import check_types, option
from spo.trl import refuse_unknown, settings_of

CREDIT = "credit assignment"
CRITIC = "critic"
LOSS = "policy loss"
ROLLOUT = "rollouts"
VLLM = "vLLM"
BATCH = "batches and steps"
OPTIM = "optimisation"
OUTPUT = "output"

SourceName = Literal["surprisal", "reference", "rest", "peers", "history", "hint", "monte_carlo"]
ItemName = Literal["numbers", "words", "symbols"]
REFERENCES_OF_RUN = ("peer", "memory")
"""Origins in `value_reference` that are no columns: completions of the run itself."""

JSON_TYPES = (str, int, float, bool, list, dict, type(None))


@dataclass
class SPOConfig:
    """Everything `SPOTrainer` reads.

    Raises:
        ValueError: from `__post_init__`, one sentence saying which fields clash and what to change.
    """

    # --- credit assignment -------------------------------------------------------------------
    entropy_percentile: float = option(
        0.05,
        "Fraction of completion tokens, the highest-entropy ones of the whole rollout batch, that "
        "start a new segment. 0 = one segment per completion (GRPO-like), 1 = every token (PPO).",
        CREDIT,
        low=0,
        high=1,
    )
    segmentation: Literal["entropy", "probability", "fixed", "delimiter", "turn"] = option(
        "entropy",
        "Where a segment starts: at the highest-entropy tokens, at the least likely sampled ones "
        "(probability; both by entropy_percentile), every segment_length tokens (fixed), behind "
        "segment_delimiter, or where the policy speaks again after a tool (turn).",
        CREDIT,
    )
    segment_length: int = option(
        32, "Tokens in a segment under segmentation='fixed'.", CREDIT, low=1
    )
    segment_delimiter: str = option(
        r"\n",
        "Regular expression behind whose matches in the text a segment starts, under "
        "segmentation='delimiter'; the default is a line break.",
        CREDIT,
    )
    gamma: float = option(
        1.0, "Discount factor, applied once per segment, not once per token.", CREDIT, low=0, high=1
    )
    lam: float | Literal["auto"] = option(
        0.95,
        "GAE lambda of the policy's advantages, per segment; 'auto' follows how much of a path's "
        "outcome the critic explained of late: a right critic wants a low one.",
        CREDIT,
        low=0,
        high=1,
    )
    normalize_advantages: bool = option(
        True,
        "Shift and scale the critic's advantages to mean 0, std 1 over all tokens of the rollout "
        "batch. Group-relative advantages (no critic) are never rescaled again.",
        CREDIT,
    )
    advantage_level: Literal["segment", "token"] = option(
        "segment",
        "'segment': every token of a segment gets the segment's advantage; 'token': its own.",
        CREDIT,
    )
    segment_value: Literal["start", "mean", "last"] = option(
        "start",
        "Value that stands for a segment: V before its first token (unbiased), or, as biased "
        "ablations, the mean over the segment or V before its last token.",
        CREDIT,
    )
    scale_rewards: Literal["group", "batch", "none"] = option(
        "group",
        "Without a critic: divide group-relative advantages by the std of the group, of the batch, "
        "or not at all.",
        CREDIT,
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = option(
        "sum_then_normalize",
        "Without a critic, of several reward functions: add the weighted rewards up and scale the "
        "sum as scale_rewards says, or scale each function within its group first and the sum over "
        "the batch (GDPO).",
        CREDIT,
    )

    # --- critic ------------------------------------------------------------------------------
    use_value_network: bool = option(
        True, "Train a critic if one is named; False forces group-relative advantages.", CRITIC
    )
    value_model_path: str | None = option(
        None,
        "Critic: 'policy' (the policy's own weights with a new zero head; under LoRA the same "
        "frozen base with a second adapter), or a path or hub id of a sequence-classification / "
        "reward checkpoint with one label. None: no network.",
        CRITIC,
    )
    value_use_peft: bool = option(
        False, "Train a LoRA adapter of a critic that value_model_path names by path or id.", CRITIC
    )
    value_lora_r: int = option(16, "Rank of the critic's own adapter.", CRITIC, low=1)
    value_lora_alpha: int = option(32, "Scale of the critic's own adapter.", CRITIC, low=1)
    value_layers: float = option(
        0.5,
        "Fraction of the layers, the last ones, that carry the adapter of a critic on the policy's "
        "base; the frozen ones below need no backward pass. 1 = all.",
        CRITIC,
        above=0,
        high=1,
    )
    value_load_in_4bit: bool = option(
        False, "4-bit base weights (NF4) of such a critic; needs value_use_peft.", CRITIC
    )
    value_load_in_8bit: bool = option(
        False, "8-bit base weights of such a critic; needs value_use_peft.", CRITIC
    )
    vf_coef: float = option(
        0.1, "Factor of the value loss in the critic's gradient.", CRITIC, low=0
    )
    value_learning_rate: float | None = option(
        None, "Peak learning rate of the critic; None: the policy's.", CRITIC, low=0
    )
    value_max_grad_norm: float = option(
        1.0,
        "Gradient clip of the critic, separate from the policy's; 0 disables it.",
        CRITIC,
        low=0,
    )
    value_warmup_steps: int = option(
        0,
        "First steps that update the critic only, so that the policy meets a fitted one.",
        CRITIC,
        low=0,
    )
    cliprange_value: float | None = option(
        None,
        "Clip range of the value around its rollout value (PPO); None: not clipped.",
        CRITIC,
        low=0,
    )
    value_features: Literal["auto", "none", "surprisal"] = option(
        "auto",
        "'surprisal': add what a small regression, refitted to every rollout batch, makes of how "
        "unlikely the path so far was: known before the token, so the gradient stays unbiased. "
        "Without value_model_path it is the whole critic, and costs next to nothing. 'auto': with "
        "a critic network, not without.",
        CRITIC,
    )
    value_sources: list[SourceName] | None = option(
        None,
        "What a small regression reads beside or instead of a critic network: surprisal (how "
        "unlikely the path was), reference (how far it agrees with value_reference), rest (how "
        "hard what is left of the reference is), peers (the siblings' rewards), history (how often "
        "the prompt was solved before), hint (the policy reads the reference first) and "
        "monte_carlo (continuations from segment starts). None: with value_reference surprisal, "
        "reference and, in groups, peers; else as value_features says.",
        CRITIC,
    )
    value_reference: list[str] | None = option(
        None,
        "Where the critic, and only the critic, finds a right solution of the prompt: a column of "
        "the data set, 'peer' (a right sibling in the batch), 'memory' (an earlier right "
        "completion of the prompt); of several the first that has one for the row.",
        CRITIC,
    )
    value_reference_items: list[ItemName] = option(
        ["numbers", "words"],
        "What completion and reference are compared by: numbers, words, or symbols (identifiers "
        "and single signs, for code and formulas).",
        CRITIC,
    )
    value_reference_prompt: str = option(
        "Reference solution:\n{reference}\n\n",
        "What stands before the prompt where the policy (hint) or the critic network "
        "(value_prompt) reads the reference; in a chat it begins the last message.",
        CRITIC,
    )
    value_right_reward: float = option(
        1.0,
        "Reward from which a completion counts as right, for 'peer', 'memory' and history.",
        CRITIC,
        low=-1e9,
    )
    value_prompt: Literal["prompt", "reference"] = option(
        "prompt", "What a critic network reads: the prompt, or the reference before it.", CRITIC
    )
    value_coefficient: Literal["one", "auto"] = option(
        "one",
        "'auto': scale the values of each prompt by the factor that makes advantages smallest on "
        "the other prompts, so that a bad critic is left out.",
        CRITIC,
    )
    value_continuations: int = option(
        4, "Continuations from each segment start under monte_carlo.", CRITIC, low=1
    )
    value_continued_segments: int | None = option(
        None,
        "Segments of each completion that monte_carlo continues from, the ones that start at the "
        "highest entropies; None: all.",
        CRITIC,
        low=1,
    )
    lam_critic: float = option(
        1.0,
        "GAE lambda of the critic's targets; 1 = Monte Carlo returns (VC-PPO).",
        CRITIC,
        low=0,
        high=1,
    )

    # --- policy loss -------------------------------------------------------------------------
    beta: float = option(
        0.0, "Factor of the KL penalty to the reference model; 0: none is loaded.", LOSS, low=0
    )
    kl_in_reward: bool = option(
        False,
        "Subtract beta·KL (k1) from each token's reward instead of adding k3 to the loss.",
        LOSS,
    )
    use_bias_correction_kl: bool = option(
        False,
        "Multiply the KL penalty by the importance ratio, which makes its gradient that of the KL "
        "(DeepSeek-V3.2).",
        LOSS,
    )
    positive_nll_coef: float = option(
        0.0,
        "Factor of a language-modelling loss on the completions with a reward above 0, each "
        "weighted by its reward (VAPO). Around 0.5 it steadies small batches at a high learning "
        "rate; it also sharpens the policy.",
        LOSS,
        low=0,
    )
    epsilon: float = option(
        0.2, "Lower (and, by default, upper) clip range of the ratio.", LOSS, low=0
    )
    epsilon_high: float | None = option(
        None,
        "Upper clip range; None: the same as epsilon. DAPO recommends 0.28. Under "
        "loss_type='cispo' the bound of the ratio itself; ScaleRL recommends 5.",
        LOSS,
        low=0,
    )
    delta: float | None = option(
        None,
        "Upper bound of the ratio itself (two-sided clipping); must exceed 1 + epsilon.",
        LOSS,
        above=0,
    )
    num_iterations: int = option(1, "Passes over each rollout batch (the μ of GRPO).", LOSS, low=1)
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"] = option(
        "dapo",
        "How token losses become one number: 'dapo' mean over the tokens of the update, 'grpo' "
        "mean over completions of their token means, 'dr_grpo' divided by completions × "
        "max_completion_length; 'bnpo' equals 'dapo' here, as no denominator depends on the split "
        "into micro-batches. 'cispo' (mean as dapo) bounds the ratio by epsilon_high and clips no "
        "token, 'sapo' (mean as grpo) fades tokens out smoothly instead.",
        LOSS,
    )
    sapo_temperature_pos: float = option(
        1.0,
        "How fast loss_type='sapo' fades out tokens of positive advantage.",
        LOSS,
        above=0,
    )
    sapo_temperature_neg: float = option(
        1.05, "The same for tokens of negative advantage.", LOSS, above=0
    )
    importance_sampling_level: Literal["token", "segment", "sequence"] = option(
        "token",
        "Ratio per token, or its geometric mean over the segment or the sequence (GSPO).",
        LOSS,
    )
    mask_truncated_completions: bool = option(
        False,
        "Leave completions that hit max_completion_length out of both losses and of the entropy "
        "ranking.",
        LOSS,
    )

    # --- rollouts ----------------------------------------------------------------------------
    num_generations: int = option(8, "Completions per prompt.", ROLLOUT, low=1)
    max_prompt_length: int | None = option(
        None, "Longest prompt in tokens; None: no limit. See overlong_prompts.", ROLLOUT, low=1
    )
    overlong_prompts: Literal["drop", "truncate_left"] = option(
        "drop", "What happens to prompts over max_prompt_length; the number is printed.", ROLLOUT
    )
    chat_template_kwargs: dict[str, Any] | None = option(
        None,
        'Further arguments of the chat template, such as {"enable_thinking": false}; a data set '
        "column of the same name wins, row by row.",
        ROLLOUT,
    )
    max_completion_length: int = option(256, "Longest completion in tokens.", ROLLOUT, low=1)
    temperature: float = option(
        1.0, "Sampling temperature; log-probs and entropies are taken at it, too.", ROLLOUT, above=0
    )
    top_p: float = option(1.0, "Nucleus sampling; 1 disables it.", ROLLOUT, above=0, high=1)
    top_k: int = option(0, "Sample among the k most likely tokens; 0 disables it.", ROLLOUT, low=0)
    min_p: float | None = option(
        None,
        "Sample among tokens at least this many times as likely as the most likely one.",
        ROLLOUT,
        low=0,
        high=1,
    )
    repetition_penalty: float = option(
        1.0,
        "Divide the logits of tokens that stand in the prompt or the completion already by this: "
        "above 1 against repetition. As with top_p, the log-probs that train do not show it.",
        ROLLOUT,
        above=0,
    )
    generation_kwargs: dict[str, Any] | None = option(
        None,
        "Further sampling settings of Transformers' GenerationConfig: min_new_tokens, "
        "no_repeat_ngram_size, bad_words_ids, suppress_tokens, typical_p, ...",
        ROLLOUT,
    )
    per_device_generation_batch_size: int | None = option(
        None,
        "Completions sampled at a time per process; None: all of the rollout batch.",
        ROLLOUT,
        low=1,
    )
    max_tool_calling_iterations: int | None = option(
        None,
        "Rounds of tool calls in one completion; None: as many as fit into max_completion_length.",
        ROLLOUT,
        low=0,
    )
    tool_timeout: float | None = option(
        60.0,
        "Seconds that a tool may take for a call before the policy reads an error instead; None: "
        "for ever.",
        ROLLOUT,
        low=0,
    )
    rollout_logprobs: Literal["sampling", "scoring"] = option(
        "sampling",
        "Where old log-probs and entropies come from: recorded while sampling (no extra pass), or "
        "a second forward pass with the update's own arithmetic.",
        ROLLOUT,
    )
    merge_adapter: bool = option(
        True,
        "While sampling, add the LoRA adapter to a copy of the weights it changes, unless they are "
        "quantised: faster, and that copy is the price in memory. In 16 bits it rounds: old "
        "log-probs are then scored, and the samples corrected as another engine's.",
        ROLLOUT,
    )
    reward_weights: list[float] | None = option(
        None, "Weight of each reward function; None: 1 each.", ROLLOUT
    )
    reward_timeout: float | None = option(
        1800.0,
        "Seconds that a reward function may take for a batch before the run ends with its name; "
        "None: for ever.",
        ROLLOUT,
        low=0,
    )
    reward_load_in_4bit: bool = option(
        False, "Weights of reward models given by path or id in 4 bits (NF4).", ROLLOUT
    )
    reward_load_in_8bit: bool = option(False, "The same in 8 bits.", ROLLOUT)

    # --- vLLM --------------------------------------------------------------------------------
    use_vllm: bool = option(
        False, "Sample with vLLM instead of the policy itself, in training and evaluation.", VLLM
    )
    vllm_mode: Literal["server", "colocate"] = option(
        "colocate",
        "'server': a vLLM server that was started before, in an environment of its own; "
        "'colocate': vLLM inside this process, beside the trainer on its card.",
        VLLM,
    )
    vllm_server_base_url: str | None = option(
        None, "Address of the server; None: http://vllm_server_host:vllm_server_port.", VLLM
    )
    vllm_server_host: str = option("0.0.0.0", "Host of the server.", VLLM)
    vllm_server_port: int = option(8000, "Port of the server.", VLLM, low=1, high=65535)
    vllm_server_timeout: float = option(
        240.0,
        "Seconds that the server may leave a request unanswered, because it is not up yet, slow or "
        "being restarted, before the run ends.",
        VLLM,
        above=0,
    )
    vllm_gpu_memory_utilization: float = option(
        0.3, "Share of the card that vLLM takes under vllm_mode='colocate'.", VLLM, above=0, high=1
    )
    vllm_enable_sleep_mode: bool = option(
        False,
        "Under vllm_mode='colocate', give vLLM's memory back while the policy is updated.",
        VLLM,
    )
    vllm_max_model_length: int | None = option(
        None,
        "Longest prompt and completion together under vllm_mode='colocate'; None: the model's.",
        VLLM,
        low=1,
    )
    vllm_tensor_parallel_size: int = option(
        1, "Cards that share vLLM's weights under vllm_mode='colocate'.", VLLM, low=1
    )
    vllm_importance_sampling_correction: bool = option(
        True,
        "Multiply the policy loss by how much more likely the policy finds what another engine "
        "sampled than that engine does: vLLM, or a rollout_func that returns logprobs.",
        VLLM,
    )
    vllm_importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = option(
        "sequence_mask",
        "That ratio per token or for the whole sequence, and outside its bounds moved to them "
        "(truncate) or 0 (mask): token_truncate, token_mask, sequence_truncate or sequence_mask.",
        VLLM,
    )
    vllm_importance_sampling_clip_max: float | None = option(
        3.0, "Upper bound of that ratio; None: no bound.", VLLM, low=0
    )
    vllm_importance_sampling_clip_min: float | None = option(
        None, "Lower bound of that ratio; None: no bound.", VLLM, low=0
    )

    # --- batches and steps -------------------------------------------------------------------
    per_device_train_batch_size: int = option(
        8, "Completions per process in one forward/backward of the update.", BATCH, low=1
    )
    gradient_accumulation_steps: int = option(
        1, "Forward/backwards per process in one optimizer update.", BATCH, low=1
    )
    steps_per_generation: int | None = option(
        None,
        "Forward/backwards per process that one rollout batch feeds; None: "
        "gradient_accumulation_steps, or as generation_batch_size implies.",
        BATCH,
        low=1,
    )
    generation_batch_size: int | None = option(
        None,
        "Completions in one rollout batch over all processes; None: per_device_train_batch_size × "
        "processes × steps_per_generation.",
        BATCH,
        low=1,
    )
    max_tokens_per_micro_batch: int | None = option(
        None,
        "Padded tokens (prompt and completion) in one forward/backward, instead of a number of "
        "rows; the mathematics do not change.",
        BATCH,
        low=1,
    )
    max_steps: int = option(
        -1,
        "Training steps, each one rollout batch and its update; -1: as num_train_epochs gives. "
        "With num_iterations=1 and the default steps_per_generation this is TRL's optimizer step.",
        BATCH,
    )
    num_train_epochs: float = option(
        1.0, "Passes over the prompts when max_steps is -1.", BATCH, above=0
    )
    shuffle_dataset: bool = option(True, "Shuffle the prompts anew in every epoch.", BATCH)
    per_device_eval_batch_size: int = option(
        64, "Completions sampled at a time per process in evaluation.", BATCH, low=1
    )
    num_generations_eval: int = option(
        1,
        "Completions per prompt in evaluation, of which the means are taken; more than 1 need "
        "eval_temperature above 0.",
        BATCH,
        low=1,
    )
    seed: int = option(42, "Seed of data order, sampling and adapter initialisation.", BATCH)
    data_seed: int | None = option(None, "Seed of the data order; None: seed.", BATCH, low=0)

    # --- optimisation ------------------------------------------------------------------------
    learning_rate: float = option(1e-6, "Peak learning rate of the policy.", OPTIM, low=0)
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_min_lr",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = option(
        "linear",
        "Schedule of both learning rates: linear, cosine, cosine_with_min_lr, "
        "cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt or "
        "warmup_stable_decay, as in Transformers.",
        OPTIM,
    )
    lr_scheduler_kwargs: dict[str, Any] | None = option(
        None, 'Further arguments of the schedule, such as {"min_lr_rate": 0.1}.', OPTIM
    )
    warmup_steps: float = option(
        0,
        "Optimizer updates of linear warm-up; below 1 it is a fraction of all updates.",
        OPTIM,
        low=0,
    )
    optim: Literal[
        "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"
    ] = option(
        "adamw_torch",
        "adamw_torch, adamw_torch_fused, adamw_8bit, paged_adamw_8bit or adafactor.",
        OPTIM,
    )
    weight_decay: float = option(0.0, "Decoupled weight decay.", OPTIM, low=0)
    adam_beta1: float = option(0.9, "Adam's first-moment decay.", OPTIM, low=0, high=1)
    adam_beta2: float = option(0.999, "Adam's second-moment decay.", OPTIM, low=0, high=1)
    adam_epsilon: float = option(1e-8, "Adam's denominator constant.", OPTIM, above=0)
    max_grad_norm: float = option(1.0, "Gradient clip of the policy; 0 disables it.", OPTIM, low=0)
    bf16: bool = option(False, "bfloat16 autocast.", OPTIM)
    fp16: bool = option(False, "float16 autocast with loss scaling (CUDA only).", OPTIM)
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass to save memory.", OPTIM
    )
    logits_chunk_size: int = option(
        256, "Tokens whose full-vocabulary logits exist at one time.", OPTIM, low=1
    )
    model_init_kwargs: dict[str, Any] | None = option(
        None, "Further arguments of from_pretrained for a policy given by name.", OPTIM
    )
    use_cpu: bool = option(False, "Stay on the CPU even where a GPU is present.", OPTIM)
    tf32: bool | None = option(
        None, "Float32 products of a card in TF32; None: as PyTorch has it.", OPTIM
    )

    # --- output ------------------------------------------------------------------------------
    output_dir: str | None = option(
        None, "Folder of the run; None: runs/<name>-<date>-<time>, new each time.", OUTPUT
    )
    overwrite_output_dir: bool = option(
        False, "Delete what an earlier run left in output_dir.", OUTPUT
    )
    resume_from_checkpoint: str | None = option(
        None,
        "'latest' or a checkpoint folder: continue exactly where it stopped; 'auto': the same, and "
        "start where there is no checkpoint yet.",
        OUTPUT,
    )
    logging_steps: float = option(
        1,
        "Steps between two lines of metrics; below 1 it is a fraction of the run.",
        OUTPUT,
        above=0,
    )
    logging_first_step: bool = option(False, "Log the first step, too.", OUTPUT)
    log_level: Literal["passive", "debug", "info", "warning", "error", "critical"] = option(
        "passive", "What Transformers prints; passive: as it is set already.", OUTPUT
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = option(
        "steps",
        "When a checkpoint is made: every save_steps, at the end of each epoch, where "
        "metric_for_best_model is better than before, or only by save_minutes (no).",
        OUTPUT,
    )
    save_steps: float = option(
        0,
        "Steps between two checkpoints, below 1 a fraction of the run; 0: none. The model is saved "
        "at the end anyway.",
        OUTPUT,
        low=0,
    )
    save_minutes: float = option(
        15,
        "Minutes after which a checkpoint is made without being asked for, of which the newest two "
        "are kept; 0: none.",
        OUTPUT,
        low=0,
    )
    save_total_limit: int | None = option(
        None, "Checkpoints kept, the best one among them; None: all.", OUTPUT, low=1
    )
    save_rollouts_steps: int = option(
        1, "Steps between two saved rollout files; 0: none are saved.", OUTPUT, low=0
    )
    save_columns: list[str] | None = option(
        None,
        "Columns of the data set saved with the rollouts; None: answer, and those that "
        "value_reference names.",
        OUTPUT,
    )
    eval_strategy: Literal["no", "steps", "epoch"] = option(
        "steps",
        "When an eval_dataset is evaluated: every eval_steps and after the last step, at the end "
        "of each epoch, or never.",
        OUTPUT,
    )
    eval_steps: float = option(
        0,
        "Steps between two evaluations, below 1 a fraction of the run; 0: only before the first "
        "and after the last.",
        OUTPUT,
        low=0,
    )
    eval_on_start: bool = option(
        True, "Evaluate before the first step, unless eval_strategy is no.", OUTPUT
    )
    load_best_model_at_end: bool = option(
        False,
        "End with the weights of the best evaluation, which is kept as a checkpoint.",
        OUTPUT,
    )
    metric_for_best_model: str | None = option(
        None, "What best means: reward, accuracy, rewards/<name>/mean, ...; None: reward.", OUTPUT
    )
    greater_is_better: bool | None = option(
        None, "Whether more of it is better; None: unless its name ends in length.", OUTPUT
    )
    eval_temperature: float = option(
        0.0, "Temperature of evaluation; 0: the most likely token.", OUTPUT, low=0
    )
    log_completions: bool = option(True, "Print sampled completions with their rewards.", OUTPUT)
    log_completions_steps: int = option(10, "Steps between two such tables.", OUTPUT, low=1)
    num_completions_to_print: int = option(3, "Completions in such a table.", OUTPUT, low=1)
    report_to: list[str] | None = option(
        [],
        "Trackers through Accelerate: tensorboard, wandb, trackio, ..., all that are installed "
        "(all), or none.",
        OUTPUT,
    )
    run_name: str | None = option(None, "Name of the run in trackers and the model card.", OUTPUT)
    disable_tqdm: bool = option(False, "No progress bar; a line per logging_steps instead.", OUTPUT)
    push_to_hub: bool = option(False, "Upload the saved model when training ends.", OUTPUT)
    hub_model_id: str | None = option(
        None, "Repository to upload to; None: the name of output_dir.", OUTPUT
    )
    hub_private_repo: bool | None = option(None, "Make that repository private.", OUTPUT)

    # --- derived sizes -----------------------------------------------------------------------
    @property
    def mixed_precision(self) -> str:
        """Accelerate's name for it: 'bf16', 'fp16' or 'no'."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"

    @property
    def share_prompts(self) -> bool:
        """Compute a prompt once for its completions in scoring and update; recomputed activations
        would have lost its key-value cache."""
        return not self.gradient_checkpointing

    @property
    def vllm_url(self) -> str:
        """Where the vLLM server listens, without a slash at the end."""
        here = f"http://{self.vllm_server_host}:{self.vllm_server_port}"
        return (self.vllm_server_base_url or here).rstrip("/")

    def critic_layers(self, num_layers: int) -> list[int]:
        """The layers of the policy that carry its critic's adapter."""
        return list(range(num_layers - math.ceil(self.value_layers * num_layers), num_layers))

    @property
    def value_bits(self) -> int | None:
        """4, 8 or None for the weights of a critic named by path or id."""
        return 4 if self.value_load_in_4bit else 8 if self.value_load_in_8bit else None

    @property
    def reward_bits(self) -> int | None:
        """4, 8 or None for the weights of reward models named by path or id."""
        return 4 if self.reward_load_in_4bit else 8 if self.reward_load_in_8bit else None

    @property
    def compute_dtype(self) -> str:
        """The name of the type that matrix products run in, those with 4-bit weights, too."""
        return {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}[self.mixed_precision]

    @property
    def wants_value_network(self) -> bool:
        """A critic network is named here; one given as an object to SPOTrainer counts as well."""
        return self.use_value_network and self.value_model_path is not None

    def wants_path_value(self, has_value_network: bool) -> bool:
        """The features of the path have a part in the value, or are all there is to it, as
        `value_features` says; a regression that reads more takes its place."""
        if self.regression_sources:
            return False
        if self.value_features == "auto":
            return has_value_network
        return self.use_value_network and self.value_features == "surprisal"

    @property
    def regression_sources(self) -> list[str]:
        """What the regression reads; none where `value_features` is all there is to it."""
        if not self.use_value_network:
            return []
        if self.value_sources is None and self.value_reference:
            peers = ["peers"] if self.num_generations > 1 else []
            return ["surprisal", "reference", *peers]
        return list(dict.fromkeys(self.value_sources or []))

    @property
    def reference_columns(self) -> list[str]:
        """The columns of the data set among `value_reference`."""
        return [name for name in self.value_reference or [] if name not in REFERENCES_OF_RUN]

    @property
    def saved_columns(self) -> list[str]:
        """Columns of the data set that rollout files hold, where they exist."""
        if self.save_columns is not None:
            return self.save_columns
        return list(dict.fromkeys(["answer", *self.reference_columns]))

    def wants_critic(self, has_value_network: bool) -> bool:
        """Advantages come from values, not from the group."""
        regression = self.wants_path_value(has_value_network) or bool(self.regression_sources)
        return has_value_network or regression

    def rollout_batch_size(self, num_processes: int = 1) -> int:
        """Completions in one rollout batch over all processes."""
        if self.generation_batch_size is not None:
            return self.generation_batch_size
        micro_steps = self.steps_per_generation or self.gradient_accumulation_steps
        return self.per_device_train_batch_size * num_processes * micro_steps

    def update_batch_size(self, num_processes: int = 1) -> int:
        """Completions in one optimizer update over all processes."""
        return self.per_device_train_batch_size * num_processes * self.gradient_accumulation_steps

    def updates_per_step(self, num_processes: int = 1) -> int:
        """Optimizer updates made from one rollout batch."""
        batches = self.rollout_batch_size(num_processes) // self.update_batch_size(num_processes)
        return batches * self.num_iterations

    @property
    def logging_strategy(self) -> str:
        """What Transformers' callbacks read: metrics are logged by steps."""
        return "steps"

    def warmup_updates(self, total_updates: int) -> int:
        """Optimizer updates of linear warm-up."""
        if self.warmup_steps < 1:
            return math.ceil(self.warmup_steps * total_updates)
        return int(self.warmup_steps)

    # --- names of others ---------------------------------------------------------------------
    def __new__(cls, *args: Any, **kwargs: Any):
        refuse_unknown(cls, kwargs, [field.name for field in dataclasses.fields(cls)])
        return super().__new__(cls)

    @classmethod
    def from_trl(cls, config: Any) -> SPOConfig:
        """The settings of a GRPOConfig, TRL's defaults included; SPO's own stay at theirs.

        What has no effect here is named in one warning; `dataclasses.replace` changes the rest.

        Raises:
            ValueError: settings that SPO does not offer, each with what to do instead.
        """
        done = settings_of(config, [field.name for field in dataclasses.fields(cls)])
        if done.problems:
            refused = ", ".join(f"{name} ({what})" for name, what in done.problems.items())
            raise ValueError(f"{type(config).__name__} sets what SPO does not offer: {refused}.")
        if done.idle:
            warnings.warn(done.summary(), stacklevel=2)
        return cls(**done.settings)

    # --- validation --------------------------------------------------------------------------
    def __post_init__(self):
        if isinstance(self.scale_rewards, bool):  # TRL accepts both forms
            self.scale_rewards = "group" if self.scale_rewards else "none"
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), os.PathLike):
                setattr(self, field.name, os.fspath(value))
        self._simplify()
        check_types(self)
        check_settings(self)

    def _simplify(self):
        """One form for what may be said in several."""
        if isinstance(self.report_to, str):
            self.report_to = [name.strip() for name in self.report_to.split(",")]
        if self.report_to in (None, ["none"]):
            self.report_to = []
        if type(self.num_train_epochs) is int:
            self.num_train_epochs = float(self.num_train_epochs)
        for name in INTERVALS:
            value = getattr(self, name)
            if isinstance(value, float) and value.is_integer():
                setattr(self, name, int(value))
        metric = self.metric_for_best_model
        if metric is None and (self.load_best_model_at_end or self.save_strategy == "best"):
            metric = "reward"
        if isinstance(metric, str):
            self.metric_for_best_model = metric = re.sub("^eval[_/]", "", metric)
            if self.greater_is_better is None:
                self.greater_is_better = not metric.endswith("length")

    def check_batches(self, num_processes: int, has_critic: bool) -> None:
        """Batch sizes divide each other; raises ValueError naming the nearest sizes that would."""
        rollout, update = (
            self.rollout_batch_size(num_processes),
            self.update_batch_size(num_processes),
        )
        if self.num_generations < 2 and not has_critic:
            raise ValueError(
                "num_generations=1 leaves nothing to compare a completion with; set it to 2 or "
                "more, or give a critic, e.g. value_model_path='policy'."
            )
        if has_critic and self.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError(
                "multi_objective_aggregation='normalize_then_sum' is of group-relative advantages, "
                "a critic's are not: set use_value_network to false, or leave it out."
            )
        unit = math.lcm(self.num_generations, update)
        if rollout % unit:
            lower, upper = rollout // unit * unit, -(-rollout // unit) * unit
            fits = " or ".join(str(n) for n in (lower, upper) if n)
            raise ValueError(
                f"A rollout batch of {rollout} completions cannot be cut into groups of "
                f"num_generations={self.num_generations} and updates of {update} completions "
                f"(per_device_train_batch_size × gradient_accumulation_steps × processes, here "
                f"{num_processes}); set generation_batch_size to {fits}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON can hold it: a torch.dtype in `model_init_kwargs` by its name."""
        settings = dataclasses.asdict(self)
        if self.model_init_kwargs:
            settings["model_init_kwargs"] = {
                name: value if isinstance(value, JSON_TYPES) else str(value).removeprefix("torch.")
                for name, value in self.model_init_kwargs.items()
            }
        return settings

    def to_json_string(self) -> str:
        """The resolved configuration as saved with every run."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)
