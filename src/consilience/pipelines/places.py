"""Where the models and files of a recipe are, and what the demonstration's block makes; no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from consilience.config import Settings
from consilience.errors import BackendError, ConfigError, nearest
from consilience.weights.hub import fetch

FILE_NAME = re.compile(r"(?!.*\.partial$)\w[\w.-]*")  # names of models and tasks become folders of the run
TINY = "tiny:"  # `tiny:pivot` is a model or file that the stage "tiny" makes in the run folder
WITHOUT_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")


class TinySettings(Settings):
    """Makes the demonstration's models and data first; `tiny:NAME` in the recipe then points to them."""

    seed: int = 0
    steps_scale: float = Field(1.0, gt=0, description="shorter pretraining for tests")


class FileOrShare(Settings):
    """What is held out: data of its own (a file, a folder, a data set's name), or a share of what is learnt from."""

    path: str | None = None
    split: str | None = Field(None, description="of a folder or data set that has several")
    share: float | None = Field(None, gt=0, lt=1)
    limit: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.path is None) == (self.share is None):
            raise ConfigError("held_out takes either path or share, not both and not neither")
        return self


class Places:
    """Where the models and files of a recipe are: beside the recipe, in the run's tiny folder, or on the hub."""

    def __init__(self, recipe_folder: Path, run_folder: Path) -> None:
        self.recipe_folder, self.run_folder = recipe_folder, run_folder

    def is_made_here(self, name: str) -> bool:
        """Whether the run itself makes what `name` points to."""
        return name.startswith(TINY)

    def file(self, name: str) -> Path:
        """The path of a data file, which need not exist."""
        if self.is_made_here(name):
            return self.run_folder / "tiny" / name.removeprefix(TINY)
        return self.recipe_folder / name if (self.recipe_folder / name).exists() else Path(name)

    def is_data_set(self, name: str) -> bool:
        """Whether `name`, which is no file, can be that of a `datasets` data set."""
        ends_as_files_do = Path(name).suffix[1:2].isalpha()  # .jsonl; the .2 of Preference-80K-v0.2 is a version
        return not self.file(name).exists() and name.count("/") <= 1 and not ends_as_files_do

    def is_on_hub(self, name: str) -> bool:
        """Whether a model is fetched from the hub by this name."""
        return not self.is_made_here(name) and not self.file(name).exists()

    def is_path(self, name: str) -> bool:
        """Whether `name` begins with a folder that is there: a slip in a path must not be asked of the hub."""
        first = Path(name).parts[0] if "/" in name else ""
        return bool(first) and any((folder / first).is_dir() for folder in (self.recipe_folder, Path()))

    def model(self, name: str, *, weights: bool = True) -> Path:
        """The local folder of a model; a hub name is fetched, or found in the hub's cache, first.

        Without `weights` what is fetched is enough for the tokenizer.
        """
        folder = self.file(name)
        if folder.is_file():
            raise BackendError(f"{name!r} is a file. Give the folder that it is in, or a hub name (owner/model).")
        if folder.exists() or self.is_made_here(name):
            return folder
        if name.count("/") != 1 or name.startswith((".", "/", "~")) or self.is_path(name):
            beside = folder.parent if folder.parent.is_dir() else self.recipe_folder / Path(name).parent
            there_are = [entry.name for entry in beside.iterdir()] if beside.is_dir() else []
            raise BackendError(
                f"no model folder {name!r}.{nearest(Path(name).name, there_are)} "
                f"Paths are relative to {self.recipe_folder.resolve()}; a hub name is owner/model."
            )
        return fetch(name, [*WITHOUT_WEIGHTS, *(("*.safetensors",) if weights else ())])
