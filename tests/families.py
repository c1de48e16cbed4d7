"""Tiny models of many families, built from their config classes: two layers, no hub."""

import tiny

COMMON = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": tiny.PAD,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
"""By the names most families use."""

WINDOW = {"sliding_window": 4}
"""Shorter than the prompts."""

SLIDING = ["sliding_attention", "full_attention"]

MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

MAMBA_HEADS = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "mistral": WINDOW,
    "gemma2": WINDOW | {"head_dim": 8, "layer_types": SLIDING},
    "nanochat": {},
    "gemma3_text": WINDOW | {"head_dim": 8, "layer_types": SLIDING},
    "cohere2": WINDOW | {"layer_types": SLIDING},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.3},
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "olmo2": {},
    "qwen3_moe": MOE | {"num_experts": 4, "head_dim": 8},
    "mixtral": MOE | {"num_local_experts": 4},
    "qwen3_next": DELTA_NET
    | MOE
    | {"num_experts": 4, "head_dim": 8, "shared_expert_intermediate_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "falcon_h1": MAMBA_HEADS | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "mamba": {"state_size": 8, "time_step_rank": 4},
}
"""model_type -> what its config needs beside or instead of `COMMON`."""

SLOW = {
    "qwen2": {},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "stablelm": {},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "cohere": {},
    "gemma": {"head_dim": 8},
    "gemma3n_text": WINDOW
    | {
        "head_dim": 8,
        "layer_types": SLIDING,
        "intermediate_size": [48, 48],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": tiny.VOCAB_SIZE,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "granitemoe": MOE | {"num_local_experts": 4, "logits_scaling": 3.0},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "bamba": MAMBA_HEADS | {"attn_layer_indices": [1]},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "num_experts": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "qwen3_5_text": DELTA_NET | {"head_dim": 8},
    "olmo_hybrid": DELTA_NET,
    "bloom": {"n_head": 4, "n_layer": 2},
    "gptj": {"rotary_dim": 4, "n_inner": 48},
    "starcoder2": {},
    "olmoe": MOE | {"num_experts": 4},
    "gpt_oss": WINDOW
    | MOE
    | {
        "num_local_experts": 4,
        "head_dim": 8,
        "layer_types": SLIDING,
    },
    "ministral3": {"head_dim": 8},
    "llama4_text": MOE
    | {
        "num_local_experts": 4,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 4,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
    },
    "deepseek_v3": MOE
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
    "glm4_moe": MOE | {"n_routed_experts": 4, "head_dim": 8, "first_k_dense_replace": 1},
    "falcon": {},
    "exaone4": WINDOW | {"layer_types": SLIDING},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "head_dim": 8,
    },
    "granitemoehybrid": MAMBA_HEADS
    | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 48},
    "lfm2_moe": MOE
    | {"layer_types": ["conv", "full_attention"], "num_experts": 4, "num_dense_layers": 1},
    "phimoe": MOE | {"num_local_experts": 4},
    "seed_oss": {"head_dim": 8},
    "minicpm3": {
        "dim_model_base": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
}
"""More of them, tried on request."""

FLOAT32 = {
    "gemma2",
    "bloom",
    "qwen3_moe",
    "mixtral",
    "qwen3_next",
    "granitemoe",
    "jamba",
    "olmoe",
    "gpt_oss",
    "deepseek_v3",
    "glm4_moe",
    "granitemoehybrid",
    "lfm2_moe",
    "phimoe",
}
"""Products of experts have no float64, and eager attention makes NaN of padding in it."""


def tiny_family(model_type: str, logit_size: float = 6.0, seed: int = 0):
    """A causal language model with seeded random weights and logits of about this size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type)
    names = {config.attribute_map.get(name, name): value for name, value in COMMON.items()}
    known = {name: value for name, value in names.items() if hasattr(config, name)}
    config = AutoConfig.for_model(model_type, **known | (FAMILIES | SLOW)[model_type])
    dtype = torch.float32 if model_type in FLOAT32 else torch.float64
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        ids = torch.arange(40, 72)[None]
        for _ in range(2):  # a scale or a cap may stand between
            logits = model(input_ids=ids, use_cache=False).logits
            model.get_output_embeddings().weight.mul_(logit_size / logits.std())
    return model
