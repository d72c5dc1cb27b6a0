"""A project's folder as gold needs it: `codebook.yaml`, `gold.sqlite`, and what `recipe.yaml` says, if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.annotate.codebook import Codebook, read_codebook
from consilience.annotate.coding.plan import Corpus
from consilience.annotate.coding.store import STORE, GoldStore
from consilience.annotate.tables import place_of, read_table, text_of
from consilience.config import load_tree
from consilience.errors import ConfigError, DataError

RECIPE = "recipe.yaml"


def project_codebook(project: Path) -> Codebook:
    """The codebook that the recipe names, else `codebook.yaml`."""
    if not project.is_dir():
        raise ConfigError(f"no folder {project}. Make one with a codebook.yaml in it: consilience annotate init.")
    return read_codebook(project / str(_recipe(project).get("codebook", "codebook.yaml")))


def project_corpus(
    project: Path,
    *,
    path: Path | None,
    text: str | None,
    id: str | None,
    cluster: str | None,
    encoding: str | None,
) -> Corpus:
    """The corpus that is given, and for what is not given that of the recipe's `data`."""
    data = _recipe(project).get("data") or {}
    if path is None and "path" not in data:
        raise ConfigError(f"which texts? Give --corpus FILE, or data.path in {project / RECIPE}.")
    return Corpus(
        path=path if path is not None else project / str(data["path"]),
        text=text or str(data.get("text", "text")),
        id=id or data.get("id"),
        cluster=cluster or data.get("cluster"),
        encoding=encoding or str(data.get("encoding", "utf-8")),
    )


def few_shot_texts(project: Path, codebook: Codebook) -> dict[str, str]:
    """What models are shown and so may not be gold: text, its blanks alike, -> where it is shown."""
    shown = {_blanks_alike(text): "the codebook" for text in codebook.example_texts}
    examples = _recipe(project).get("examples")
    if isinstance(examples, Mapping) and "path" in examples:
        path = project / str(examples["path"])
        table = read_table(path, str(examples.get("encoding", "utf-8")))
        place = place_of(table.columns, str(examples.get("text", "text")), path, "examples.text")
        shown |= {_blanks_alike(text_of(row[place])): path.name for row in table.rows}
    return shown


def open_gold(project: Path, codebook: Codebook) -> GoldStore:
    """The gold sample of `project`. Raises `DataError` where none was drawn, or for another variable."""
    store = GoldStore(project / STORE)
    drawn_for = store.about["codebook"]
    if (drawn_for["variable"], drawn_for["level"]) != (codebook.variable, str(codebook.level)):
        store.close()
        raise DataError(
            f"{store.path} is of {drawn_for['variable']} ({drawn_for['level']}), the codebook of {codebook.variable} "
            f"({codebook.level}). One folder holds one variable."
        )
    return store


def _recipe(project: Path) -> Mapping[str, Any]:
    path = project / RECIPE
    return load_tree(path) if path.is_file() else {}


def _blanks_alike(text: str) -> str:
    return " ".join(text.split())
