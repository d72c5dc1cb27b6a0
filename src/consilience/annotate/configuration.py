"""A configuration ready to code: engine, strategy, examples, correction; and what identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from consilience.annotate.codebook import CLOSED
from consilience.annotate.coder import Coder
from consilience.annotate.corrections import Affine
from consilience.annotate.engines import Engine, fingerprints, local_folder
from consilience.annotate.examples import EMBEDDED, Embed, refuse_few_examples
from consilience.annotate.recipe import Project, StrategySettings, refuse_unreadable
from consilience.annotate.strategies import Shot
from consilience.annotate.tables import place_of, read_table, text_of
from consilience.errors import ConfigError, DataError
from consilience.models.engine import VLLM
from consilience.run import fingerprint


def pool_of(project: Project) -> tuple[Shot, ...]:
    """Texts that may be shown with their labels: the codebook's examples, then those of the recipe's table."""
    book, examples = project.codebook, project.recipe.examples
    shots = [Shot(example.text, label.name) for label in book.labels for example in label.examples]
    if examples is None:
        return tuple(shots)
    path = project.file(examples.path)
    table = read_table(path, examples.encoding)
    text_at = place_of(table.columns, examples.text, path, "examples.text")
    label_at = place_of(table.columns, examples.label, path, "examples.label")
    for number, row in enumerate(table.rows, start=1):
        try:
            shots.append(Shot(text_of(row[text_at]), book.canonical(text_of(row[label_at]))))
        except DataError as error:
            raise DataError(f"{path}, row {number}: {error}") from None
    return tuple(shots)


def coder_of(project: Project, name: str, engine: Engine, correction: Affine | None = None) -> Coder:
    """The coder of configuration `name`."""
    return Coder(
        engine=engine,
        codebook=project.codebook,
        strategy=project.recipe.strategy_of(name),
        wording=project.recipe.wording,
        pool=pool_of(project),
        correction=correction,
        seed=project.recipe.seed,
        embed=embedder_of(project, project.recipe.strategy_of(name)),
    )


def embedder_of(project: Project, strategy: StrategySettings) -> Embed | None:
    """What makes vectors of texts, where the strategy chooses its examples by them."""
    settings = project.recipe.embedding
    if settings is None or strategy.choose != EMBEDDED or not strategy.shots:
        return None
    from consilience.annotate.embed import load_embedder

    return load_embedder(project.file(settings.path), settings.prefix)


def refuse_unanswerable(project: Project, names: Iterable[str]) -> None:
    """Raises `ConfigError` at a configuration whose model cannot answer as its strategy asks; loads no model.

    Also where there are fewer examples than its strategy shows.
    """
    names = [*names]
    pool = pool_of(project) if any(project.recipe.strategy_of(name).shots for name in names) else ()
    for name in names:
        settings = project.recipe.models[project.recipe.configurations[name][0]]
        if settings.column is None:
            try:
                here = settings.endpoint is None
                constrains = not here or settings.engine == VLLM
                refuse_unreadable(project.recipe.strategy_of(name), tells_probabilities=here, constrains=constrains)
                refuse_few_examples(pool, project.recipe.strategy_of(name).shots)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None


def identity(project: Project, name: str) -> dict[str, Any]:
    """Everything that decides what configuration `name` makes of a text: what `freeze` fixes.

    The model by the contents of its folder, the examples by a hash, the codebook in full.
    """
    model, _ = project.recipe.configurations[name]
    settings = project.recipe.models[model]
    return {
        "codebook": project.codebook.model_dump(mode="json"),
        "model": settings.decides(),
        "model_fingerprint": fingerprints(settings, model, project.folder),
        "strategy": project.recipe.strategy_of(name).model_dump(mode="json"),
        "wording": project.recipe.wording.model_dump(mode="json"),
        "examples": digest([list(shot) for shot in pool_of(project)]),
        "embedding": _embedding(project, project.recipe.strategy_of(name)),
        "text_column": project.recipe.data.text,
        "seed": project.recipe.seed,
    }


def _embedding(project: Project, strategy: StrategySettings) -> dict[str, str] | None:
    settings = project.recipe.embedding
    if settings is None or strategy.choose != EMBEDDED:
        return None
    path = local_folder("embedding", settings.path, project.folder)
    return {"fingerprint": fingerprint(path), "prefix": settings.prefix}


def digest(value: Any) -> str:
    """Sixteen hex digits of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def correction_to_json(correction: Affine | None) -> dict[str, Any] | None:
    """A correction for a file."""
    if correction is None:
        return None
    return {"weights": correction.weights_KK.tolist(), "offsets": correction.offsets_K.tolist()}


def correction_from_json(stored: Mapping[str, Any] | None) -> Affine | None:
    """The correction that `correction_to_json` wrote."""
    return None if stored is None else Affine(np.array(stored["weights"]), np.array(stored["offsets"]))


def scores_labels(coder: Coder) -> bool:
    """Whether the coder reads probabilities of one label out of several, which is what corrections are of."""
    return coder.strategy.answer in ("labels", "letters") and coder.codebook.level in CLOSED


def grouped_by_model(project: Project, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The configurations of one model after the other: a model is loaded once, and let go before the next."""
    for model in project.recipe.models:
        of_model = [name for name in names if project.recipe.configurations[name][0] == model]
        if of_model:
            yield model, of_model
