"""Families of language models at the size of a test: one configuration each.

Two layers of 64 channels; windows and attention types are those that the family is known for.
"""

from __future__ import annotations

from typing import Any

VOCABULARY, POSITIONS = 1024, 256

SIZE: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
WIDTH: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
LLAMA: dict[str, Any] = {**SIZE, **WIDTH, "intermediate_size": 128, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "sliding_window": None}
SLIDING = ["sliding_attention", "full_attention"]

# The class of each family's configuration in transformers, and its arguments.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {**SIZE, **WIDTH, "intermediate_size": 128}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            **SIZE, "hidden_size": 64, "num_heads": 4, "num_layers": 2, "intermediate_size": 128,
            "attention_types": [[["global", "local"], 1]], "window_size": 32,
        },
    ),
    "opt": ("OPTConfig", {**SIZE, **WIDTH, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "llama": ("LlamaConfig", LLAMA),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": 16}),
    "qwen2": (
        "Qwen2Config",
        LLAMA | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 16}),
    "gemma2": (
        "Gemma2Config", LLAMA | {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
    ),
    "gemma3": (
        "Gemma3TextConfig",
        LLAMA | {"head_dim": 16, "sliding_window": 16, "layer_types": SLIDING},
    ),
    "phi3": ("Phi3Config", LLAMA | {"pad_token_id": 2}),
    "olmo2": ("Olmo2Config", LLAMA),
    "mixtral": ("MixtralConfig", LLAMA | EXPERTS | {"num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        LLAMA | EXPERTS | {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 64},
    ),
    "olmoe": ("OlmoeConfig", LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip


def config_of(family: str) -> Any:
    """Return the configuration of the tiny model of a family.

    Raises:
        ValueError: for an unknown family.
    """
    import transformers

    if family not in FAMILIES:
        raise ValueError(f"model.source=tiny:{family}: give one of {', '.join(FAMILIES)}")
    name, arguments = FAMILIES[family]
    config = getattr(transformers, name)(**arguments)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    # Dropout would only slow so short a training down.
    for name in vars(config):
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return config
