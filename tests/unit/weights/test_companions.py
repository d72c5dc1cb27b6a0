from __future__ import annotations

from pathlib import Path

import pytest

from consilience.errors import BackendError
from consilience.weights import copy_companions

COPIED = [
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "qwen.tiktoken",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
]
LEFT = [
    "README.md",
    "adapter_model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "optimizer.pt",
    "pytorch_model.bin",
    "trainer_state.json",
]


def test_all_that_a_model_needs_but_its_weights(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for name in COPIED + LEFT:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(f"the content of {name}")
    copy_companions(source, out)
    found = {str(file.relative_to(out)): file.read_text() for file in out.rglob("*") if file.is_file()}
    assert found == {name: f"the content of {name}" for name in COPIED}


def test_a_source_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no config\.json"):
        copy_companions(tmp_path, tmp_path / "out")
