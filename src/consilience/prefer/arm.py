"""The settings of one arm of an alignment: its loss, where its replies are from, how they become pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from consilience.config import Settings, known
from consilience.errors import ConfigError
from consilience.models import Sampling
from consilience.models.endpoint import EndpointSettings
from consilience.prefer.losses import WITH_THIRD, LossSettings
from consilience.prefer.pairs import PAIRINGS
from consilience.train import TrainSettings

# What else the policy may say than its one likeliest reply: where y is from (docs/prefer.md measures them).
EXPLORATIONS: dict[str, dict[str, Any]] = {
    "none": {"temperature": 0.0, "samples": 1},  # SELM's code
    "temperature": {"temperature": 1.0, "samples": 1},
    "best_of_n": {"temperature": 1.0, "samples": 4},  # the best and the worst of four, and of the offline pair
}
# What a recipe that gives some keys of a block leaves out of it.
DEFAULTS: dict[str, dict[str, Any]] = {
    "sample": {"max_new_tokens": 1024},
    "train": {"epochs": 1, "batch_size": 128, "learning_rate": 5e-7, "warmup": 0.1},  # SELM's
}


class ServedModel(Settings):
    """A model behind a server."""

    endpoint: EndpointSettings


class SamplerSettings(ServedModel):
    """A server that replies in the policy's place: it serves one model, and the policy becomes another every round."""

    rounds: Literal["first", "all"] | None = Field(
        None, description="first: it runs the start model; all: every round learns from that model's replies"
    )

    def speaks_in(self, number: int) -> bool:
        """Whether it replies in this round."""
        return number == 1 or self.rounds == "all"


class ArmSettings(Settings):
    """Everything that decides one arm's rounds. What an arm of a recipe leaves out, it has from the recipe itself."""

    loss: LossSettings = LossSettings()
    explore: Annotated[str, known(lambda: EXPLORATIONS, "exploration")] = "none"
    sample: Sampling = Field(Sampling(**DEFAULTS["sample"]), description="the policy's own replies, over `explore`")
    sampler: SamplerSettings | None = Field(None, description="a server in the policy's place; default: this process")
    pair: Annotated[str, known(lambda: PAIRINGS, "pairing rule")] = "best_worst"
    offline_pair: bool = Field(True, description="the data's pair is among the candidates")
    third: str | ServedModel = Field(
        "policy", description="whose first reply the loss's third term is about: policy, start, a model, or a server's"
    )
    reference: str = Field("previous", description="what the policy is held near: previous, start, or a model")
    replay: bool = Field(False, description="learn from the pairs of all earlier rounds, too")
    offline_rounds: int = Field(0, ge=0, description="so many first rounds are plain DPO on the data's pairs")
    data_from: str | None = Field(None, description="learn from the pairs that another arm collected")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="one per round, in the place of train.learning_rate; the last goes on"
    )
    max_tokens: int = Field(1024, ge=2, description="of prompt and reply together; longer ones are set aside")
    batch_tokens: int = Field(8192, ge=1, description="read at once where nothing is learnt")
    train: TrainSettings = TrainSettings(**DEFAULTS["train"])

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        blocks = {name: {**DEFAULTS[name], **tree[name]} for name in DEFAULTS if isinstance(tree.get(name), dict)}
        if tree.get("explore") in EXPLORATIONS and isinstance(tree.get("sample", {}), dict):
            blocks["sample"] = {**DEFAULTS["sample"], **EXPLORATIONS[tree["explore"]], **tree.get("sample", {})}
        return tree | blocks

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.sample.samples + (2 if self.offline_pair else 0) < 2 and self.pair == "best_worst":
            raise ConfigError("one sample and no offline pair make no pair; give sample.samples or offline_pair: true")
        if self.pair != "best_worst" and not self.offline_pair:
            raise ConfigError(f"pair: {self.pair} is about the offline pair, and offline_pair is false")
        if self.loss.name == "wrpo" and self.loss.alpha > 1:
            raise ConfigError(f"loss.alpha is {self.loss.alpha}; wrpo's is a share, at most 1")
        if self.loss.name in WITH_THIRD and not self.loss.alpha:
            raise ConfigError(
                f"loss.name is {self.loss.name} and loss.alpha 0, which is dpo. Give loss.alpha, the weight of "
                "its term, or loss.name: dpo"
            )
        if self.has_third and self.third == "policy" and self.pair != "best_worst" and self.data_from is None:
            raise ConfigError(
                f"pair: {self.pair} samples nothing, so there is no reply of the policy for the term of "
                f"{self.loss.name}. Give pair: best_worst, third: start or a model, or loss.name: dpo"
            )
        if self.sampler and self.sampler.rounds == "first" and self.offline_rounds:
            raise ConfigError(
                f"sampler.rounds is first and offline_rounds {self.offline_rounds}: in the first round nothing is "
                "sampled, and the server would never be asked. Give offline_rounds: 0, or sampler.rounds: all"
            )
        return self

    @property
    def has_third(self) -> bool:
        return self.loss.name in WITH_THIRD and self.loss.alpha > 0

    def in_round(self, number: int) -> ArmSettings:
        """The settings of one round: the first `offline_rounds` are DPO on the data; the learning rate of its own."""
        changes: dict[str, Any] = {}
        if number <= self.offline_rounds:
            loss = self.loss.model_copy(update={"name": "dpo", "alpha": 0.0})
            changes = {"loss": loss, "pair": "offline", "data_from": None}
        if self.learning_rates:
            rate = self.learning_rates[min(number, len(self.learning_rates)) - 1]
            changes["train"] = self.train.model_copy(update={"learning_rate": rate})
        return self.model_copy(update=changes)
