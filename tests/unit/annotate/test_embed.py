"""Examples by the vectors of a local model: against transformers itself, their order, and what has to be given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from conftest import SENTENCES
from consilience.annotate.embed import Embedder, load_embedder
from consilience.annotate.examples import EMBEDDED, chooser_of
from consilience.annotate.recipe import AnnotateRecipe
from consilience.annotate.strategies import Shot
from consilience.config import parse
from consilience.errors import BackendError, ConfigError


@pytest.fixture(scope="module")
def embed(world: Path) -> Embedder:
    return load_embedder(world / "finch", "query: ")


def test_a_vector_is_the_mean_of_the_last_states(embed: Embedder, world: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(world / "finch"), AutoTokenizer.from_pretrained(world / "finch")
    with torch.no_grad():
        states = model(**tokenizer("query: " + SENTENCES[0], return_tensors="pt")).last_hidden_state[0]
    mean = states.mean(0).double().numpy()
    found = embed([SENTENCES[0], SENTENCES[1]])
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)


def test_the_nearest_stands_last(embed: Embedder) -> None:
    pool = [Shot(text, str(i)) for i, text in enumerate(SENTENCES)]
    text = SENTENCES[2] + " Again."
    likeness = embed(SENTENCES) @ embed([text])[0]
    chosen = chooser_of(EMBEDDED, pool, 3, 0, embed)(["Other words.", text])[1]
    assert [shot.label for shot in reversed(chosen)] == [str(i) for i in np.argsort(-likeness)[:3]]
    assert chooser_of(EMBEDDED, pool, 0, 0, embed)([text]) == [()]


def test_without_a_folder_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no folder"):
        load_embedder(tmp_path / "nowhere")
    recipe = {
        "data": {"path": "texts.csv"},
        "models": {"small": {"path": "m"}},
        "strategies": {"few_shot": {"choose": EMBEDDED}},
    }
    with pytest.raises(ConfigError, match="needs embedding"):
        parse(recipe, AnnotateRecipe, where="")
    assert parse(recipe | {"embedding": {"path": "e5"}}, AnnotateRecipe, where="").embedding is not None


def test_a_text_has_the_same_vector_among_others(embed: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of all lengths, the longest first, in one batch and in several of other make-up."""
    texts = ["", *SENTENCES, " ".join(SENTENCES)][::-1]
    alone = np.concatenate([embed([text]) for text in texts])
    np.testing.assert_allclose(embed(texts), alone, atol=1e-5)
    monkeypatch.setattr("consilience.annotate.embed.BATCH_TOKENS", 40)
    np.testing.assert_allclose(embed(texts), alone, atol=1e-5)


def test_a_batch_is_embedded_once_for_all_its_prompts(embed: Embedder) -> None:
    asked: list[int] = []

    def counting(texts: Sequence[str]) -> np.ndarray:
        asked.append(len(texts))
        return embed(texts)

    choose = chooser_of(EMBEDDED, [Shot(text, "x") for text in SENTENCES], 2, 0, counting)
    assert choose(["one", "two"]) == choose(["one", "two"])
    assert asked == [len(SENTENCES), 2]
