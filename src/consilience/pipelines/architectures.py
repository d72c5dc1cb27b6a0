"""Shapes of the models that recipes name, for a forecast and a rehearsal where the hub cannot be asked.

Figures are those of the models' own config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DebertaV2Config,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from consilience.errors import BackendError, ConfigError, first_line, pick
from consilience.pipelines.places import Places

LONGEST = 512  # positions of a shrunk model
MISTRAL: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 14336, "num_key_value_heads": 8}

ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma-2-2b": lambda: Gemma2Config(),
    "internlm2-20b": lambda: LlamaConfig(  # its weights under Llama's names, as FuseChat used it
        vocab_size=92544,
        hidden_size=6144,
        intermediate_size=16384,
        num_hidden_layers=48,
        num_attention_heads=48,
        num_key_value_heads=8,
    ),
    "llama-2-7b": lambda: LlamaConfig(),
    "llama-3-8b": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_key_value_heads=8
    ),
    "llama-3.2-3b": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "mistral-7b": lambda: MistralConfig(vocab_size=32002, **MISTRAL),
    "mixtral-8x7b": lambda: MixtralConfig(**MISTRAL),
    "mpt-7b": lambda: MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=50432),
    "qwen1.5-72b": lambda: Qwen2Config(
        vocab_size=152064,
        hidden_size=8192,
        intermediate_size=24576,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=64,
    ),
    "qwen2.5-1.5b": lambda: Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": lambda: Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "qwen3-4b": lambda: Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "solar-10.7b": lambda: LlamaConfig(
        vocab_size=32002, **MISTRAL, num_hidden_layers=48, num_attention_heads=32, max_position_embeddings=4096
    ),
}

ENCODERS: dict[str, Callable[[], PreTrainedConfig]] = {  # of judges
    "deberta-v3-large": lambda: DebertaV2Config(
        vocab_size=128100, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        type_vocab_size=0,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a language model, counted on its modules without making a number of them."""

    parameters: int
    active: int  # of them, what one token's forward pass multiplies with: no embedding, of the experts those chosen
    layers: int
    width: int
    cached: int  # numbers that a token leaves in the caches of keys and values
    linear_ends: int  # inputs and outputs of the linear layers but the head: what an adapter of rank one has


def size_of(config: PreTrainedConfig) -> Size:
    """The size of the model that `config` describes."""
    kind = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
    with torch.device("meta"):
        model: Any = kind.from_config(config)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    parameters = sum(counts.values())
    experts = sum(count for name, count in counts.items() if ".experts." in name)
    idle = experts - experts * config.num_experts_per_tok // config.num_local_experts if experts else 0
    looked_up = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not head]
    apart = head is None or head.weight is not looked_up
    heads = getattr(config, "num_attention_heads", None) or 1  # none in a state space model
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Size(
        parameters=parameters,
        active=parameters - idle - (looked_up.numel() if apart else 0),
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        cached=2 * int(config.num_hidden_layers) * (getattr(config, "num_key_value_heads", None) or heads) * width,
        linear_ends=sum(layer.in_features + layer.out_features for layer in linear),
    )


def architecture_of(name: str, known: Mapping[str, str], places: Places) -> PreTrainedConfig:
    """The configuration of a model: its own where its folder is here, else of the architecture that is `known` of it.

    Raises `ConfigError` where neither is there.
    """
    folder = places.file(name)
    if folder.is_dir():
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise BackendError(f"cannot read the configuration of {name!r}: {first_line(error)}.") from None
        return config
    if name not in known:
        raise ConfigError(
            f"the model {name!r} is not in a folder here, and the recipe does not say its architecture. Add "
            f"assumed.architectures: {{{name}: ...}} with one of {', '.join(sorted(ARCHITECTURES))}; or download it."
        )
    return pick(ARCHITECTURES | ENCODERS, known[name], "architecture")()


def shrunk(config: PreTrainedConfig, vocabulary: int, **ids: int | None) -> PreTrainedConfig:
    """The same architecture, two layers deep and 32 wide, for a tokenizer of `vocabulary` tokens with these `ids`."""
    settings = config.get_text_config().to_dict()
    layers = min(2, config.get_text_config().num_hidden_layers)
    grouped = settings.get("num_key_value_heads") != settings.get("num_attention_heads")
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if grouped else 4,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "num_local_experts": 4,
        "layer_types": list(settings.get("layer_types") or [])[:layers],
        "max_position_embeddings": LONGEST,
        "n_embd": 32,  # GPT-2's names, and MPT's
        "n_head": 4,
        "n_layer": layers,
        "n_positions": LONGEST,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": layers,
        "max_seq_len": LONGEST,
    }
    changed = {name: value for name, value in small.items() if settings.get(name) is not None}
    return type(config.get_text_config())(
        **settings | changed | {"vocab_size": vocabulary, "initializer_range": 0.3} | ids
    )
