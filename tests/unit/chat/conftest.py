"""The tokenizers of chat_tokenizers.py as fixtures, each made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chat_tokenizers import TOKENIZERS


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Tokenizers by name, each made once. A test must leave them as they are."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = TOKENIZERS[name](tmp_path_factory)
        return made[name]

    return get


@pytest.fixture(params=sorted(TOKENIZERS), scope="session")
def tokenizer(request: pytest.FixtureRequest, tokenizers: Callable[[str], Any]) -> Any:
    return tokenizers(request.param)
