"""Tiny judges in this process: a reward model, and a ranker in PairRM's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[CLS]", "[SEP]", "<|source|>", "<|candidate1|>", "<|candidate2|>"]
    vocabulary = {text: i for i, text in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        additional_special_tokens=specials[3:],
    )


def _spread(model: Any) -> None:
    """Weights that are the same under any version of any library, and wide enough for scores that differ."""
    import torch

    with torch.no_grad():
        for nth, (name, parameter) in enumerate(model.named_parameters()):
            steps = torch.arange(parameter.numel(), dtype=torch.float64)
            norm = float(parameter.ndim == 1 and name.endswith("weight"))
            parameter.copy_((norm + 0.4 * torch.sin(steps * steps * 0.7 + nth)).reshape(parameter.shape).float())


def save_reward_model(folder: Path) -> None:
    """A model for sequence classification with one label, whose tokenizer has no chat template."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        num_labels=1,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_ranker(folder: Path) -> None:
    """A ranker with the configuration and the weights' names of `llm-blender/PairRM-hf`."""
    from transformers import DebertaV2Config

    from consilience.judge.reward import PairRanker

    tokenizer = _tokenizer()
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
        n_tasks=1,
        drop_out=0.05,
        sep_token_id=2,
        source_prefix_id=3,
        cand_prefix_id=0,
        cand1_prefix_id=4,
        cand2_prefix_id=5,
    )
    model = PairRanker(config)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
