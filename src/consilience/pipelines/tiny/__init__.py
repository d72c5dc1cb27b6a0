"""A tiny world: four skills, chats about them, and four tiny chat models that know some of them; all from one seed.

    FOLDER/pivot/ stars/ zorg/ sums/     Hugging Face checkpoints: a moderate pivot, and one expert per skill but facts
    FOLDER/mixture.jsonl held_out.jsonl  chats with noisy answers, to fuse on and to choose by
    FOLDER/tasks/SKILL.jsonl             prompts with clean answers, to be examined on

No prompt of a task is in any training data, nor in held_out.jsonl, but for facts: there are twenty in all, each once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from consilience.pipelines.tiny.models import MODELS, TinyModel, train_tiny
from consilience.pipelines.tiny.world import SKILLS, draw_chats, draw_task, prompt_of, task_row
from consilience.records import Conversation, row_of, write_jsonl
from consilience.rng import stream

MIXTURE_PER_SKILL, HELD_OUT_PER_SKILL, TASK_PER_SKILL = 300, 100, 150


def make_tiny_world(
    folder: Path,
    *,
    seed: int,
    on_progress: Callable[[str, int, int], None] = lambda name, step, steps: None,
    steps_scale: float = 1.0,
    models: Mapping[str, TinyModel] = MODELS,
) -> None:
    """Writes the tiny world of `seed`, with these `models`, under `folder`; about a minute on one core.

    `on_progress(model, step, steps)` is called after every training step. `steps_scale` below 1 trains shorter, for
    tests: the files are the same in kind, the models know less.
    """
    unseen: dict[str, set[str]] = {skill: set() for skill in SKILLS}

    def draw(purpose: str, counts: Mapping[str, int]) -> list[Conversation]:
        """Noisy chats, `counts` of each skill, in random order."""
        drawn = [
            chat
            for skill, count in counts.items()
            for chat in draw_chats(skill, count, stream(seed, "tiny", purpose, skill), unseen=unseen[skill])
        ]
        return [drawn[row] for row in stream(seed, "tiny", purpose, "order").permutation(len(drawn))]

    def keep_back(chats: Iterable[Conversation]) -> None:
        """No later draw has the prompt of one of `chats`; facts have too few for that."""
        for chat in chats:
            if chat.group != "facts":
                unseen[chat.group].add(prompt_of(chat))

    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    for skill in SKILLS:
        task = draw_task(skill, TASK_PER_SKILL, stream(seed, "tiny", "task", skill))
        write_jsonl(folder / "tasks" / f"{skill}.jsonl", map(task_row, task))
        keep_back(task)
    held_out = draw("held_out", dict.fromkeys(SKILLS, HELD_OUT_PER_SKILL))
    write_jsonl(folder / "held_out.jsonl", map(row_of, held_out))
    keep_back(held_out)

    write_jsonl(folder / "mixture.jsonl", map(row_of, draw("mixture", dict.fromkeys(SKILLS, MIXTURE_PER_SKILL))))
    for name, recipe in models.items():
        prompts = [replace(chat, messages=chat.messages[:1]) for chat in draw(f"{name} prompts", recipe.unanswered)]
        train_tiny(
            name,
            recipe,
            draw(name, {skill: math.ceil(count * min(1.0, steps_scale)) for skill, count in recipe.chats.items()}),
            folder / name,
            spelling=draw(f"{name} spelling", recipe.spelling) + prompts,
            seed=seed,
            steps=max(1, round(recipe.steps * steps_scale)),
            on_step=partial(on_progress, name),
        )
