"""The demonstration: the recipe that makes tiny chat models and fuses them."""

from __future__ import annotations

from pathlib import Path

from consilience.errors import ConfigError

NAME = "tiny-fuse.yaml"


def demo_recipe() -> Path:
    """The recipe of `consilience demo`: inside an installed package, or in the repository's recipes/."""
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "recipes", here.parents[3] / "recipes"):
        if (folder / NAME).is_file():
            return folder / NAME
    raise ConfigError(
        f"the recipe {NAME} is not installed. Reinstall consilience, or give its path to consilience fuse."
    )
