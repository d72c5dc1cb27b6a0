"""What the stages of one fusion share: the models and chats of the recipe, and the keys that stages go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from consilience.chat import Rendered, render, render_prompt
from consilience.config import Settings
from consilience.errors import DataError
from consilience.evaluate import read_questions
from consilience.fuse import Match, Representation, refuse_top_k
from consilience.models import (
    ChatModel,
    Model,
    load_model,
    load_tokenizer,
    open_model,
    refuse_engine,
    vocabulary_size,
)
from consilience.models.load import make_room
from consilience.models.ray_data import refuse_without_ray
from consilience.pipelines.chats import read_chats
from consilience.pipelines.data import digest_of
from consilience.pipelines.places import Places
from consilience.pipelines.recipe import PIVOT, FuseRecipe
from consilience.records import Message, row_of
from consilience.run import RunFolder, fingerprint, key_of
from consilience.weights import Checkpoint

OnProgress = Callable[[str, int, int], None]
# A text as base models are trained on it: between the tokens that begin and end one, where a tokenizer has them.
PLAIN_TEXT = "{{ bos_token or '' }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token or '' }}"


class Fusion:
    """One run of a recipe, whose inputs have these fingerprints; the pivot is called PIVOT among the models."""

    def __init__(
        self, recipe: FuseRecipe, places: Places, run: RunFolder, inputs: Mapping[str, str], on_progress: OnProgress
    ) -> None:
        self.recipe, self.places, self.run, self.on_progress = recipe, places, run, on_progress
        self.train_chats, self.held_out = read_chats(recipe, places)
        self.questions = {
            name: read_questions(places.file(task.path), match=task.match, limit=task.limit)
            for name, task in recipe.tasks.items()
        }
        self.paths = {PIVOT: places.model(recipe.pivot)} | {
            name: places.model(path) for name, path in recipe.sources.items()
        }
        self.representations: dict[str, Representation] = {}
        self.matches: dict[str, Match] = {}
        tasks = {f"tasks/{name}": places.file(task.path) for name, task in recipe.tasks.items()}
        self.keys = dict(inputs)  # of models, files and chats, and of the stages that follow from them
        self.keys |= {name: fingerprint(path) for name, path in (self.paths | tasks).items()}
        chats = {"chats": self.train_chats, "held out": self.held_out}
        self.keys |= {name: digest_of(map(row_of, part)) for name, part in chats.items()}
        self._tokenizers: dict[str, Any] = {}  # by model; some take a second to read

    def stage(
        self,
        name: str,
        make: Callable[[Path], None],
        *,
        after: Sequence[str] = (),
        settings: Sequence[Any] = (),
        together: bool = False,
    ) -> Path:
        """The folder of stage `name`, which follows from `settings` and from what `after` names, and nothing else."""
        self.keys[name] = key_of(
            settings=[one.decides() if isinstance(one, Settings) else one for one in settings],
            after={one: self.keys[one] for one in after},
        )
        return self.run.stage(name, make, key=self.keys[name], together=together)

    def refuse_unusable(self) -> None:
        """A model without weights, chat template or enough tokens is refused before hours are spent on the others."""
        refuse_engine(self.recipe.represent)
        if self.recipe.represent.ray is not None:
            refuse_without_ray()
        for name, path in self.paths.items():
            Checkpoint(path)
            render_prompt(self.tokenizer(name), [Message("user", "Hello")])
            refuse_top_k(self.recipe.represent, name, vocabulary_size(path, code=self.recipe.trust_remote_code))

    def load(self, name: str, dtype: str = "float32", *, place: bool = True) -> ChatModel:
        """The model called `name`. What the models before it held is given back first: two may not fit together."""
        make_room()
        code, tokenizer = self.recipe.trust_remote_code, self.tokenizer(name)
        return load_model(self.paths[name], name=name, dtype=dtype, code=code, place=place, tokenizer=tokenizer)

    def opener(self, name: str, **how: Any) -> Callable[[], Model]:
        """What opens the model called `name` by the engine of `represent`, to be asked and not trained; what the models
        before it held is given back now."""
        make_room()
        settings = self.recipe.represent
        return partial(
            open_model,
            self.paths[name],
            settings,
            name=name,
            dtype=settings.dtype,
            code=self.recipe.trust_remote_code,
            tokenizer=self.tokenizer(name),
            **how,
        )

    def tokenizer(self, name: str) -> Any:
        """The tokenizer of a model, with the template that the recipe lets it read chats by."""
        if name not in self._tokenizers:
            self._tokenizers[name] = self._read_tokenizer(name)
        return self._tokenizers[name]

    def _read_tokenizer(self, name: str) -> Any:
        tokenizer = load_tokenizer(self.paths[name], code=self.recipe.trust_remote_code)
        if self.recipe.represent.template == "text":
            tokenizer.chat_template = PLAIN_TEXT
        if self.recipe.represent.template == "pivot" and not tokenizer.chat_template and name != PIVOT:
            tokenizer.chat_template = self._pivot_template()  # a base model may be a source, too
        return tokenizer

    def _pivot_template(self) -> str | None:
        templates: Any = self.tokenizer(PIVOT).chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    @property
    def shared_template(self) -> str | None:
        """The template that all models read the training chats by; None where each has its own."""
        return self._pivot_template() if self.recipe.represent.template == "pivot" else None

    def as_the_pivot_reads(self, messages: Sequence[Message], max_tokens: int | None = None) -> Rendered | None:
        """A chat under the pivot's template; None where that refuses it."""
        try:
            return render(self.tokenizer(PIVOT), messages, max_tokens=max_tokens)
        except DataError:
            return None

    def pivot_can_read(self, messages: Sequence[Message]) -> bool:
        """Whether the pivot's template takes a chat."""
        return self.as_the_pivot_reads(messages) is not None
