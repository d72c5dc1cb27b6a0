"""The recipe of `consilience evaluate`: which models, on which tasks, and everything that decides the numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from consilience.config import Settings
from consilience.errors import ConfigError, pick
from consilience.evaluate.checked import CheckedSettings, IfevalSettings
from consilience.evaluate.choice import ChoiceSettings
from consilience.evaluate.judged import MtBenchSettings, PairwiseSettings, RatedSettings
from consilience.judge import JudgeSettings
from consilience.models import EngineSettings
from consilience.models.endpoint import EndpointSettings
from consilience.models.engine import refuse_elsewhere
from consilience.pipelines.places import FILE_NAME, TinySettings


class ModelSettings(EngineSettings):
    """One model: a folder or hub name run in this process, one behind a server, or finished replies in files."""

    path: str | None = None
    endpoint: EndpointSettings | None = None
    answers: str | dict[str, str] | None = Field(None, description="a file, or one for every task")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(64, ge=1, description="replies written at once")

    @model_validator(mode="after")
    def _one_of_its_kinds(self) -> Self:
        given = [name for name in ("path", "endpoint", "answers") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"a model takes one of path, endpoint and answers; got {' and '.join(given) or 'none'}")
        refuse_elsewhere(self, self.path)
        return self

    def answers_to(self, task: str) -> str | None:
        """The file of finished replies to a task; None for a model that is run."""
        if not isinstance(self.answers, dict):
            return self.answers
        return pick(self.answers, task, "file of answers")


def _by_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


TaskSettings = Annotated[
    CheckedSettings | ChoiceSettings | IfevalSettings | MtBenchSettings | PairwiseSettings | RatedSettings,
    Field(discriminator="kind"),
]
JUDGED = (MtBenchSettings, PairwiseSettings, RatedSettings)


class EvaluateRecipe(Settings):
    """Models and tasks in; estimates, paired differences and a report out."""

    title: str = "Evaluation"
    note: str | None = None
    tiny: TinySettings | None = None
    models: dict[str, Annotated[ModelSettings, BeforeValidator(_by_path)]]
    judges: dict[str, JudgeSettings] = {}
    tasks: dict[str, TaskSettings]
    reference: str | None = Field(None, description="the model that differences are shown to")
    margins: dict[str, float] = Field({}, description="a difference that would matter, by task")
    level: float = Field(0.95, gt=0, lt=1)
    cache: str | None = Field(None, description="the file of paid answers; default: one in the run folder")
    seed: int = 0
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default: one per core")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if not self.models or not self.tasks:
            raise ConfigError("expected at least one model and one task")
        for name in (*self.models, *self.tasks):
            if not FILE_NAME.fullmatch(name):
                raise ConfigError(f"{name!r} cannot name a folder; expected letters, digits, '_', '-' and '.'")
        if self.reference is not None:
            pick(self.models, self.reference, "model")
        for task, margin in self.margins.items():
            pick(self.tasks, task, "task")
            if not margin > 0:
                raise ConfigError(f"margins.{task} is {margin:g}; expected a positive difference that would matter")
        for task, settings in self.tasks.items():
            if isinstance(settings, JUDGED):
                pick(self.judges, settings.judge, "judge")
            if isinstance(settings, PairwiseSettings | MtBenchSettings) and settings.baseline is not None:
                pick(self.models, settings.baseline, "model")
                if len(self.models) < 2:
                    raise ConfigError(f"task {task}: the only model is its own baseline; give a second model")
            for name, model in self.models.items():
                if settings.kind == "choice" and model.path is None:
                    raise ConfigError(
                        f"task {task} scores choices by likelihood, which takes a model in this process, and {name} is "
                        "none. Put it into a recipe of its own"
                    )
        return self

    def sampling_seed(self, task: str) -> int:
        """The task's own seed where it has one, else the recipe's."""
        sampling = self.tasks[task].sampling
        return sampling.seed if "seed" in sampling.model_fields_set else self.seed
