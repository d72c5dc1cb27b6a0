"""The recipe of the experiment behind docs/search.md: the toy world, the arms, and what they are compared with."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from consilience.config import Settings, known, parse
from consilience.errors import ConfigError, pick
from consilience.pipelines.tiny import reviews
from consilience.search import METHODS, SearchSettings


class ReviewsSettings(Settings):
    """The toy world, and how its models are made."""

    prompts: int = Field(96, ge=2, description="of each kind: all aspects, some of them")
    guide_seeds: int = Field(3, ge=1, description="small pairs, each trained anew; the large model stays")
    chats: int = Field(24_000, ge=64, description="to train models on")
    large_steps: int = Field(1_000, ge=1)
    small_steps: int = Field(300, ge=1)
    pairs: int = Field(4_096, ge=64, description="for DPO, of samples of the untuned small model")
    dpo_epochs: int = Field(2, ge=1)
    dpo_beta: float = Field(0.2, gt=0)
    dpo_learning_rate: float = Field(1e-3, gt=0)


class ArmSettings(Settings):
    """One way to a reply."""

    method: Annotated[str, known(lambda: METHODS, "search method")] = "cbs"
    from_: Literal["large", "tuned", "untuned"] = Field("large", alias="from", description="the model that writes")
    guide: Literal["pair", "same", "swapped"] = "pair"
    search: dict[str, Any] = {}
    kinds: tuple[Literal["all", "some"], ...] = reviews.HOW_MANY  # type: ignore[assignment]


class SearchRecipe(Settings):
    """The experiment: arms on the same prompts, under the same settings where an arm does not say otherwise."""

    title: str = "Weak-to-strong search on a toy"
    note: str | None = None
    reviews: ReviewsSettings = ReviewsSettings()
    search: dict[str, Any] = {}
    arms: dict[str, ArmSettings]
    against: tuple[str, ...] = Field((), description="arms that every other is compared with, in pairs")
    batch: int = Field(96, ge=1)
    level: float = Field(0.95, gt=0, lt=1)
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    processes: int = Field(1, ge=1, description="arms answered at once, each by one thread; changes no result")

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        for name in self.arms:
            if not re.fullmatch(r"[\w ,.=-]+", name):
                raise ConfigError(f"{name!r} cannot name an arm's folder; expected letters, digits and ' ,.=-_'")
            self.settings_of(name)
        for name in self.against:
            pick(self.arms, name, "arm")
        return self

    def settings_of(self, arm: str) -> SearchSettings:
        """Those of the recipe with the arm's own on top."""
        return parse(self.search | self.arms[arm].search, SearchSettings, where=f"arms.{arm}.search")
