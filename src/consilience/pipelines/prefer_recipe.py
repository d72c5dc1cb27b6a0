"""The recipe of `consilience prefer`: the model, the data, the judge, and the arms that are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from consilience.config import Settings, filled
from consilience.errors import ConfigError, nearest
from consilience.judge import JudgeSettings
from consilience.models import EngineSettings, Sampling
from consilience.models.endpoint import EndpointSettings
from consilience.pipelines.data import Named
from consilience.pipelines.places import FILE_NAME, FileOrShare
from consilience.prefer.arm import EXPLORATIONS, ArmSettings, ServedModel

POLICY = "policy"  # the only arm of a recipe that names none
MEASURED: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 1024}
NESTED = ("loss", "sample", "train")  # blocks of which an arm may give single keys


class TinyPreferenceSettings(Settings):
    """Makes a tiny chat model and a known reward for every seed; `tiny:NAME` in the recipe then points to them."""

    pairs: int = Field(288, ge=6)
    held_out: int = Field(96, ge=2)
    steps_scale: float = Field(1.0, gt=0, description="shorter pretraining for tests")


class PreferenceDataSettings(Settings):
    """Prompts with a chosen and a rejected reply each, or prompts alone: a file, a folder, or a data set's name."""

    path: str
    split: str | None = Field(None, description="of a folder or data set that has several; default: train")
    limit: int | None = Field(None, ge=1)


class HeldOutPromptsSettings(FileOrShare):
    """Prompts that policies are measured on: data of their own, or the last share of `data`."""


class MeasureSettings(Settings):
    """How every policy is measured; the KL from the start is unbiased at temperature 1 without top_k and top_p."""

    sample: Annotated[Sampling, filled(**MEASURED)] = Sampling(**MEASURED)
    level: float = Field(0.95, gt=0, lt=1)


class AssumedPromptSettings(Settings):
    """What a dry run goes by where data or models are not here. A real run reads none of it."""

    architectures: dict[str, str] = Field({}, description="by the name of a model or judge: one of ARCHITECTURES")
    prompts: int | None = Field(None, ge=1, description="in the data")
    held_out: int = Field(500, ge=2, description="in held_out.path")
    prompt_tokens: int = Field(180, ge=1, description="of an average prompt, template included")
    reply_tokens: int = Field(300, ge=1, description="of an average reply")


class PreferRecipe(EngineSettings, ArmSettings):
    """A chat model, preference data and a judge in; one aligned model per round and arm, and a report, out.

    The settings of an arm may stand beside `arms`, as the default of all of them.
    """

    title: str = "Aligned model"
    note: str | None = None
    tiny: TinyPreferenceSettings | None = None
    model: str
    data: PreferenceDataSettings
    held_out: HeldOutPromptsSettings = HeldOutPromptsSettings(share=0.05)
    judge: JudgeSettings
    annotator: float | None = Field(
        None, gt=0, description="for simulations: verdicts drawn with odds exp(this * difference in score)"
    )
    rounds: int = Field(3, ge=1)
    prompts_per_round: int | None = Field(None, ge=1, description="default: the data in equal parts")
    arms: dict[str, dict[str, Any]] = Field({POLICY: {}}, description="name: what differs from the recipe's settings")
    baseline: str | None = Field(None, description="the arm that the others are compared with; default: the first")
    measure: MeasureSettings = MeasureSettings()
    result: str | None = Field(None, description="the arm that is handed over; default: the last")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="each repeats everything, for intervals over runs")
    threads: int | None = Field(None, ge=1)
    trust_remote_code: bool = False
    assumed: AssumedPromptSettings = AssumedPromptSettings()

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if not self.arms:
            raise ConfigError("arms is empty; leave it out for a single arm")
        for name in self.arms:
            if not FILE_NAME.fullmatch(name) or name == "start":
                raise ConfigError(
                    f"{name!r} cannot name an arm; expected letters, digits, '_', '-' and '.', not 'start'"
                )
        for key, arm in (("baseline", self.baseline), ("result", self.result)):
            if arm is not None and arm not in self.arms:
                raise ConfigError(f"{key}: no arm is called {arm!r}.{nearest(arm, self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds holds a number twice: {self.seeds}")
        for name, settings in self.of_arms().items():
            if settings.offline_rounds >= self.rounds:
                raise ConfigError(
                    f"arms.{name}.offline_rounds is {settings.offline_rounds} of {self.rounds} rounds: nothing "
                    "would be sampled or judged. Give more rounds; or, for DPO on the data's pairs, pair: offline"
                )
            if self.rounds > 1 and settings.sampler and settings.sampler.rounds is None:
                raise ConfigError(
                    f"arms.{name}.sampler: a server runs one model, and from round 2 on the policy is another. Give "
                    "sampler.rounds: first (it runs the start model; later rounds are sampled in this process), or all "
                    "(every round learns from that model's replies, off-policy); or rounds: 1"
                )
        return self

    @property
    def baseline_name(self) -> str:
        return self.baseline or next(iter(self.arms))

    @property
    def result_name(self) -> str:
        return self.result or [*self.arms][-1]

    def of_arms(self) -> dict[str, ArmSettings]:
        """The settings of every arm: its own over the recipe's. Those that learn from another's pairs come after it."""
        found = {name: self._of_arm(name, changes) for name, changes in self.arms.items()}
        for name, settings in found.items():
            source = settings.data_from
            if source is None:
                continue
            if source not in found:
                raise ConfigError(f"arms.{name}.data_from: no arm is called {source!r}.{nearest(source, found)}")
            if found[source].data_from is not None:
                raise ConfigError(f"arms.{name}.data_from: {source} has no pairs of its own")
        return dict(sorted(found.items(), key=lambda item: item[1].data_from is not None))

    def _of_arm(self, name: str, changes: dict[str, Any]) -> ArmSettings:
        from consilience.config import parse

        fields = ArmSettings.model_fields
        tree: dict[str, Any] = {key: getattr(self, key) for key in fields}
        tree = {key: value.model_dump() if isinstance(value, Settings) else value for key, value in tree.items()}
        tree["sample"] |= EXPLORATIONS.get(str(changes.get("explore")), {})
        for key, value in changes.items():
            merges = key in NESTED and isinstance(value, dict)
            tree[key] = {**tree[key], **value} if merges else value
        return parse(tree, ArmSettings, where=f"arms.{name}")

    def decompositions(self) -> list[tuple[str, str, str]]:
        """`(arm, on the same data, baseline)`: an arm, its twin that learns from the baseline's pairs, the baseline."""
        settings = self.of_arms()
        found = []
        for twin, of_twin in settings.items():
            for arm, of_arm in settings.items():
                same = of_arm.data_from is None and of_twin == of_arm.model_copy(
                    update={"data_from": of_twin.data_from}
                )
                if of_twin.data_from not in (None, arm) and same:
                    found.append((arm, twin, str(of_twin.data_from)))
        return found


def data_of(recipe: PreferRecipe) -> dict[str, Named]:
    """The data that the recipe names, by key."""
    found: dict[str, Named] = {"data": recipe.data}
    return found | ({"held_out": recipe.held_out} if recipe.held_out.path else {})


def models_of(recipe: PreferRecipe) -> dict[str, str]:
    """The models that the recipe names, by key."""
    models = {"model": recipe.model}
    if recipe.judge.model:
        models["judge.model"] = recipe.judge.model
    for name, settings in recipe.of_arms().items():
        if isinstance(settings.third, str) and settings.third not in ("policy", "start"):
            models[f"arms.{name}.third"] = settings.third
        if settings.reference not in ("previous", "start"):
            models[f"arms.{name}.reference"] = settings.reference
    return models


def servers_of(recipe: PreferRecipe) -> dict[str, EndpointSettings]:
    """The servers that reply in a run, by what they are asked for; those of the judge are its own."""
    found: dict[str, EndpointSettings] = {}
    for name, settings in recipe.of_arms().items():
        if settings.data_from is None and settings.sampler:
            found[f"arms.{name}.sampler"] = settings.sampler.endpoint
        if settings.data_from is None and isinstance(settings.third, ServedModel):
            found[f"arms.{name}.third"] = settings.third.endpoint
    return found


def folder_of_seed(recipe: PreferRecipe, out: Path, seed: int) -> Path:
    """Where a seed's stages are: in the run folder itself where there is but one."""
    return out / f"seed-{seed}" if len(recipe.seeds) > 1 else out
