"""The files beside the weights that make a folder a model: configuration, tokenizer, chat template."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from consilience.errors import BackendError

# Glob patterns. Weights, optimizer states and model cards are not among them: they describe the model copied from.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "configuration_*.py",  # named by config.json's auto_map; copied, never run
    "modeling_*.py",
    "tokenization_*.py",
)


def copy_companions(source: Path, out: Path) -> None:
    """Copies the files of COMPANIONS that `source` has into `out`, each whole or not at all; never weights.

    Raises `BackendError` when `source` has no config.json: nothing could load the copy.
    """
    if not (source / "config.json").is_file():
        raise BackendError(f"{source} has no config.json. Give the path of a Hugging Face model folder.")
    for pattern in COMPANIONS:
        for file in sorted(source.glob(pattern)):
            copy = out / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_name(copy.name + ".partial")
            try:
                shutil.copyfile(file, partial)
                os.replace(partial, copy)
            except OSError as error:
                raise BackendError(
                    f"{file} cannot be copied to {out} ({error.strerror}). Free some space or give another folder."
                ) from None
