"""A new project: a recipe and a codebook to fill in."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from consilience.errors import ConfigError
from consilience.run import write_text

FILES = ("recipe.yaml", "codebook.yaml")


def init(folder: Path) -> list[Path]:
    """Writes the two files, commented, into `folder`. Raises `ConfigError` where one of them is there already."""
    refuse_overwriting(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror}). Give another folder.") from None
    paths = [folder / name for name in FILES]
    for path in paths:
        write_text(path, template(path.name))
    return paths


def refuse_overwriting(folder: Path) -> None:
    """Raises `ConfigError` where `folder` holds a project already, or is a file."""
    if folder.is_file():
        raise ConfigError(f"{folder} is a file. Give a folder.")
    there = [folder / name for name in FILES if (folder / name).exists()]
    if there:
        raise ConfigError(f"{there[0]} is there already; nothing was written. Give another folder.")


def template(name: str) -> str:
    """The text of one of `FILES`."""
    return (resources.files("consilience.annotate") / "templates" / name).read_text(encoding="utf-8")
