"""The stages of a fusion before and after training: represent, align, select; merge, evaluate.

Each is made once in the run folder, and what it needs it reads from the stages before it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consilience.align import Spelling
from consilience.chat import token_bytes
from consilience.evaluate import Answer, ReplyLikelihood, answer_questions, held_out_likelihood
from consilience.fuse import Match, Representation, match, represent, select
from consilience.fuse.match import spelling_of
from consilience.merge import merge_checkpoints
from consilience.pipelines.fusion import Fusion
from consilience.pipelines.recipe import PIVOT, target_of
from consilience.pipelines.results import Evaluation
from consilience.pipelines.targets import Target
from consilience.records import read_rows, write_jsonl
from consilience.weights import Checkpoint


def represented(fusion: Fusion, name: str) -> Representation:
    """What the model called `name` thinks of the training chats."""
    settings = fusion.recipe.represent

    def make(folder: Path) -> None:
        how = {"top_k": settings.top_k, "longest": settings.max_tokens}
        represent(
            fusion.opener(name, **how, spread=settings.spread, bits=settings.bits),
            fusion.train_chats,
            settings,
            folder,
            model_hash=fusion.keys[name],
            chat_template=fusion.shared_template,
            on_progress=functools.partial(fusion.on_progress, f"represent {name}"),
        )

    template = [PIVOT] if settings.template == "pivot" else []
    stage = fusion.stage(
        f"represent/{name}",
        make,
        after=["chats", name, *template],
        settings=[settings, fusion.recipe.trust_remote_code],
    )
    return Representation(stage)


def aligned(fusion: Fusion, source: str) -> Match:
    """Which positions of pivot and source meet, and how often which tokens do."""

    def make(folder: Path) -> None:
        fusion.on_progress(f"align {source}", 0, 1)
        match(
            fusion.representations[PIVOT],
            fusion.representations[source],
            token_bytes(fusion.tokenizer(PIVOT)),
            token_bytes(fusion.tokenizer(source)),
            fusion.recipe.align,
            folder,
            spellings=_spellings(fusion, source),
        )
        fusion.on_progress(f"align {source}", 1, 1)

    pair = [PIVOT, source, f"represent/{PIVOT}", f"represent/{source}"]
    return Match(fusion.stage(f"align/{source}", make, after=pair, settings=[fusion.recipe.align]))


def _spellings(fusion: Fusion, source: str) -> tuple[Spelling, Spelling] | None:
    """How pivot and source write their tokens, if the sequence alignment goes by that."""
    if fusion.recipe.align.sequence == "spans":
        return None
    pivot, other = (
        spelling_of(fusion.tokenizer(name), fusion.representations[name].vocabulary_size) for name in (PIVOT, source)
    )
    return pivot, other


def selected(fusion: Fusion, target: Target) -> Path:
    """What a target learns at every position of the training chats."""

    def make(folder: Path) -> None:
        fusion.on_progress(f"select {target.name}", 0, 1)
        sources = {
            name: (fusion.representations[name], fusion.matches[name], target.vocabulary) for name in target.sources
        }
        groups = [chat.group for chat in fusion.train_chats]
        select(fusion.representations[PIVOT], sources, groups, target.select, folder)
        fusion.on_progress(f"select {target.name}", 1, 1)

    inputs = [f"{verb}/{source}" for source in target.sources for verb in ("represent", "align")]
    return fusion.stage(
        f"select/{target.name}",
        make,
        after=["chats", f"represent/{PIVOT}", *inputs],
        settings=[target.select, target.vocabulary, target.sources],
    )


def merged(fusion: Fusion, name: str, targets: Sequence[Path]) -> Path:
    """The pairwise targets, merged by the recipe's merge called `name`."""
    base = _merge_base(fusion, targets[0])

    def make(folder: Path) -> None:
        merge_checkpoints(
            base,
            targets,
            folder,
            fusion.recipe.merges[name],
            on_tensor=functools.partial(fusion.on_progress, f"merge {name}"),
            replace=True,  # what a killed call left in this partial folder
        )

    tuned = [f"train/{target_of(source)}" for source in fusion.recipe.sources]
    return fusion.stage(f"merge/{name}", make, after=[PIVOT, *tuned], settings=[fusion.recipe.merges[name]])


def _merge_base(fusion: Fusion, target: Path) -> Path:
    """The pivot under the tensor names of a target.

    transformers leaves out buffers that older checkpoints hold, and the head that is tied to the embeddings.
    """
    if {*Checkpoint(fusion.paths[PIVOT]).names} == {*Checkpoint(target).names}:
        return fusion.paths[PIVOT]

    def make(folder: Path) -> None:
        pivot = fusion.load(PIVOT, place=False)
        pivot.model.save_pretrained(folder)
        pivot.tokenizer.save_pretrained(folder)

    return fusion.stage("merge/pivot", make, after=[PIVOT])


def evaluated(fusion: Fusion, name: str) -> Evaluation:
    """The model called `name` on the chats held out and on the questions."""
    recipe, settings = fusion.recipe, fusion.recipe.evaluate

    def make(folder: Path) -> None:
        chat_model = fusion.load(name, settings.dtype)
        scored = held_out_likelihood(
            chat_model,
            fusion.held_out,
            max_tokens=settings.max_tokens,
            batch_tokens=settings.batch_tokens,
            on_progress=functools.partial(fusion.on_progress, f"evaluate {name}"),
        )
        write_jsonl(folder / "likelihood.jsonl", map(asdict, scored))
        for task, questions in fusion.questions.items():
            answers = answer_questions(
                chat_model,
                questions,
                recipe.tasks[task],
                on_progress=functools.partial(fusion.on_progress, f"{task} {name}"),
            )
            write_jsonl(folder / f"task-{task}.jsonl", map(asdict, answers))

    folder = fusion.stage(
        f"evaluate/{name}",
        make,
        after=[name, "held out", *(f"tasks/{task}" for task in fusion.questions)],
        settings=[settings, recipe.represent.template, *recipe.tasks.values()],
    )
    return Evaluation(
        [ReplyLikelihood(**row) for row in _rows(folder / "likelihood.jsonl")],
        {task: [Answer(**row) for row in _rows(folder / f"task-{task}.jsonl")] for task in fusion.questions},
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]
