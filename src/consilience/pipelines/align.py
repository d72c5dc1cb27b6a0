"""The whole of `consilience align`: tokenizers and texts in, an account of how well they meet out. No weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilience.chat.template import template_of
from consilience.config import load_recipe
from consilience.errors import BackendError, ConfigError, pick
from consilience.fuse import AlignSettings
from consilience.models import load_tokenizer
from consilience.pipelines.chats import read_chats
from consilience.pipelines.places import Places
from consilience.pipelines.readings import Model, Texts, chat_texts, plain_texts, read_texts
from consilience.pipelines.recipe import FuseRecipe
from consilience.pipelines.tiny import make_tiny_world
from consilience.pipelines.tokenizer_quality import TOP_K, OnProgress, SourceQuality, source_quality
from consilience.records import read_conversations
from consilience.report import write_alignment_report

TEMPLATES = {
    "native": "each tokenizer reads its own chat template",
    "pivot": "the sources read the pivot's chat template",
}
NO_TEMPLATE = "none"  # plain text
CHATS_NOT_TEXT = (".jsonl", ".parquet")  # whose braces and quotes would be measured as if somebody had said them
WARPED = 50  # texts


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignResult:
    """How well the tokens of one or more sources meet a pivot's over some texts."""

    pivot: str
    texts: str  # where they are from
    kind: str  # conversations, paragraphs or lines
    template: str  # one of TEMPLATES, or NO_TEMPLATE
    listed: str  # the vocabulary mapping that `tokens` and `unmapped` speak of
    sources: Mapping[str, SourceQuality]

    def to_json(self) -> dict[str, Any]:
        """The result for a file or a report."""
        return {
            "pivot": self.pivot,
            "texts": self.texts,
            "kind": self.kind,
            "template": self.template,
            "listed": self.listed,
            "top_k": TOP_K,
            "sources": {name: found.to_json() for name, found in self.sources.items()},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """How much is measured, and where the page goes."""

    warped: int = WARPED  # texts for the quadratic warpings; 0 leaves them out
    html: Path | None = None
    force: bool = False  # overwrites an existing page
    on_progress: OnProgress = lambda what, done, total: None

    def __post_init__(self) -> None:
        """Before the work rather than after it."""
        if self.html is None:
            return
        if self.html.is_dir() or (self.html.exists() and not self.force):
            way_out = "Give --html a file" if self.html.is_dir() else "Give --force to overwrite it"
            raise ConfigError(f"{self.html} exists. {way_out}, or another name.")
        folder = self.html.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(
                f"{self.html} cannot be written: {folder} is no folder that can be written to. Make it first."
            )


def align_report(
    pivot: str,
    source: str,
    chats: Path | None = None,
    *,
    text: Sequence[Path] = (),
    limit: int | None = None,
    template: str | None = None,
    output: Output | None = None,
) -> AlignResult:
    """Aligns the replies of `chats`, or plain `text` files, under two tokenizers (folders or hub names).

    `template` is one of TEMPLATES, for chats. Raises `BackendError` for a tokenizer that cannot be loaded,
    `ConfigError` for one without a chat template, `DataError` when there is nothing to align or nothing matches.
    """
    if (chats is None) == (not text):
        raise ConfigError("give the texts to align on: either --chats FILE or --text FILE, not both and not neither.")
    if chats is not None and chats.is_dir():
        raise ConfigError(f"--chats {chats} is a folder. Give a file of chats; the order is PIVOT SOURCE --chats FILE.")
    for path in text:
        if path.name.removesuffix(".gz").endswith(CHATS_NOT_TEXT):
            raise ConfigError(f"--text {path} is no plain text by its name. For chats, give --chats {path}.")
    if text and template is not None:
        raise ConfigError("--template is for --chats; a plain text is read without a chat template.")
    if template is not None:
        pick(TEMPLATES, template, "template")
    texts = (
        plain_texts(text, limit) if chats is None else chat_texts(str(chats), read_conversations(chats, limit=limit))
    )
    kept = NO_TEMPLATE if chats is None else template or "native"
    return _aligned(
        pivot, {source: source}, Places(Path(), Path()), texts, kept, AlignSettings().vocabulary, output or Output()
    )


def align_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    limit: int | None = None,
    template: str | None = None,
    output: Output | None = None,
) -> AlignResult:
    """Aligns the chats that the `fuse` recipe at `path` trains on under its pivot and every one of its sources.

    `template` takes the place of the recipe's own. Chats are read whole, whatever `represent.max_tokens` says. Raises
    what `align_report` does, and `ConfigError` for a recipe that cannot be used.
    """
    if template is not None:
        pick(TEMPLATES, template, "template")
    recipe = load_recipe(path, FuseRecipe, overrides)
    output = output or Output()
    with tempfile.TemporaryDirectory() as scratch:
        places = Places(path.parent, Path(scratch))
        made_here = [*filter(places.is_made_here, (recipe.pivot, *recipe.sources.values(), recipe.data.path))]
        if made_here and recipe.tiny is None:
            raise ConfigError(f"{path} names {made_here[0]!r} but has no 'tiny:' block that makes it.")
        if recipe.tiny is not None:  # its tokenizers and chats do not depend on how long its models are trained
            make_tiny_world(Path(scratch) / "tiny", seed=recipe.tiny.seed, steps_scale=1e-9)
        train_chats, _ = read_chats(recipe, places)
        return _aligned(
            recipe.pivot,
            recipe.sources,
            places,
            chat_texts(str(path), train_chats[:limit]),
            template or recipe.represent.template,
            recipe.align.vocabulary,
            output,
            code=recipe.trust_remote_code,
        )


def _aligned(
    pivot: str,
    sources: Mapping[str, str],
    places: Places,
    texts: Texts,
    template: str,
    listed: str,
    output: Output,
    *,
    code: bool = False,
) -> AlignResult:
    tokenizer = _tokenizer("pivot", pivot, places, code=code)
    tokenizers = {
        name: _tokenizer("source" if name == path else f"source {name}", path, places, code=code)
        for name, path in sources.items()
    }
    shared = None if template == NO_TEMPLATE else _template_of(tokenizer, pivot)
    if template == "native":
        for name, path in sources.items():
            _template_of(tokenizers[name], path)

    def read(name: str, tokenizer: Any) -> Model:
        return read_texts(
            tokenizer,
            texts,
            shared if template == "pivot" else None,
            lambda done: output.on_progress(f"read {name}", done, len(texts.items)),
            spelled=output.warped > 0,
        )

    ours = read("pivot", tokenizer)
    result = AlignResult(
        pivot=pivot,
        texts=texts.name,
        kind=texts.kind,
        template=template,
        listed=listed,
        sources={
            name: source_quality(
                name,
                path,
                ours,
                read(Path(name).name, tokenizers[name]),
                texts,
                listed=listed,
                warped=output.warped,
                on_progress=output.on_progress,
            )
            for name, path in sources.items()
        },
    )
    if output.html is not None:
        examples = {name: found.examples for name, found in result.sources.items()}
        write_alignment_report(result.to_json() | {"examples": examples}, output.html)
    return result


def _tokenizer(role: str, name: str, places: Places, *, code: bool) -> Any:
    try:
        return load_tokenizer(places.model(name, weights=False), code=code)
    except BackendError as error:
        raise BackendError(f"{role}: {error}") from error


def _template_of(tokenizer: Any, name: str) -> str:
    try:
        return template_of(tokenizer, None).jinja
    except ConfigError:
        raise ConfigError(
            f"the tokenizer {name!r} has no chat template. Put a chat_template.jinja into its folder; for a source, "
            "--template pivot lends it the pivot's; with --text none is needed."
        ) from None
