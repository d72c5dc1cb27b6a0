"""The recipe of an annotation: the table, the codebook, the models, the strategies, the gold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from consilience.annotate.codebook import CLOSED, MOST_NUMBERS, Codebook, Level, read_codebook
from consilience.annotate.corrections import CORRECTIONS
from consilience.annotate.examples import CHOOSERS, EMBEDDED
from consilience.annotate.strategies import DEFAULTS, IN_ONE_REPLY, LETTERS, STRATEGIES, Wording
from consilience.config import Settings, known, load_recipe
from consilience.errors import ConfigError
from consilience.models import EngineSettings
from consilience.models.endpoint import EndpointSettings
from consilience.models.engine import refuse_elsewhere
from consilience.models.ray_data import RaySettings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # of models and strategies: together they name files and columns


class DataSettings(Settings):
    """The table of texts. Without `id`, rows are known by their number, from 1."""

    path: str
    text: str = "text"
    id: str | None = None
    cluster: str | None = Field(None, description="a column whose rows go together: author, document, speech")
    encoding: str = Field("utf-8", description="of CSV and TSV files")


GIVEN = "given"  # the strategy of labels that stand in a column already


class ModelSettings(EngineSettings):
    """A chat model: a local folder, or a model that a server with OpenAI's API has; or labels made elsewhere."""

    path: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chat_template: str | None = Field(None, description="a file with a Jinja template, in place of the model's own")
    trust_remote_code: bool = False
    endpoint: EndpointSettings | None = Field(None, description="{url: http://localhost:8000/v1, model: name}")

    column: str | None = Field(None, description="of the data: labels that another program or an earlier run made")

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if [self.path, self.endpoint, self.column].count(None) != 2:
            raise ConfigError(
                "a model takes one of path: (a folder), endpoint: (a server's url and model) and column: (its labels)"
            )
        refuse_elsewhere(self, self.path)
        return self


class StrategySettings(Settings):
    """How a model is asked, and how its answer is read."""

    kind: Annotated[str, known(lambda: STRATEGIES, "prompting strategy")]
    answer: Literal["labels", "letters", "constrained", "free"] = Field(
        "labels",
        description="labels: every label's probability; letters: that of option letters; constrained: decoding that "
        "can only end in the codebook; free: generation, read strictly",
    )
    format: Literal["answer", "json"] = "answer"
    shots: int = Field(0, ge=0)
    choose: Annotated[str, known(lambda: {**CHOOSERS, EMBEDDED: None}, "way to choose examples")] = "stratified"
    persona: str = ""
    orders: int = Field(1, ge=1, description="orders of the labels; probabilities are averaged over them")
    samples: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    correction: Annotated[str, known(lambda: CORRECTIONS, "correction of label scores")] = "none"
    max_new_tokens: int = Field(64, ge=1)
    reason_tokens: int = Field(160, ge=1, description="longest reasoning of chain_of_thought")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kind in IN_ONE_REPLY and self.answer != "free":
            raise ConfigError(
                f"{self.kind} reads the answer from the end of a reply: answer is free, not {self.answer}"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(f"{self.samples} samples at temperature 0 are the same; give a temperature above 0")
        if self.samples > 1 and self.answer in ("labels", "letters"):
            raise ConfigError(
                f"answer: {self.answer} reads probabilities and draws no samples; take constrained or free"
            )
        if self.correction != "none" and self.answer not in ("labels", "letters"):
            raise ConfigError(f"a correction is of label scores; answer: {self.answer} has none")
        if self.kind == "persona" and not self.persona:
            raise ConfigError("a persona strategy needs persona: such as 'an experienced coder of party manifestos'")
        if self.format == "json" and self.answer == "letters":
            raise ConfigError("answer: letters has a format of its own; leave out format: json")
        return self


def refuse_unreadable(strategy: StrategySettings, *, tells_probabilities: bool, constrains: bool) -> None:
    """Raises `ConfigError` where a model cannot answer as is asked.

    It tells the probabilities of whole answers or not, and its decoding can be constrained or not.
    """
    if strategy.answer == "labels" and not tells_probabilities:
        raise ConfigError("a server does not tell the probabilities of labels; take letters, constrained or free.")
    if strategy.answer == "constrained" and strategy.samples > 1 and not constrains:
        raise ConfigError(
            f"a model in this process tells the exact probability of every answer, of which {strategy.samples} "
            "constrained samples would be draws. Leave samples and temperature out, or take answer: free."
        )


class ExamplesSettings(Settings):
    """A table of labelled texts to take few-shot examples from, beside the codebook's own. Never gold."""

    path: str
    text: str = "text"
    label: str = "label"
    encoding: str = "utf-8"


class EmbeddingSettings(Settings):
    """A local folder with a sentence encoder or any language model, by whose vectors examples are chosen."""

    path: str
    prefix: str = Field("", description="what the encoder wants before every text, such as 'query: '")


class GoldSettings(Settings):
    """Human labels: a table of their own with ids, as `consilience gold` writes it, or a column of the data.

    In such a column a blank is a text that nobody coded, and the coded ones are taken for a simple random sample.
    """

    path: str | None = None
    column: str | None = None
    encoding: str = "utf-8"

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.path is None) == (self.column is None):
            raise ConfigError("gold takes either path: (a table with id and label) or column: (of the data)")
        return self


class DevSettings(Settings):
    """The development sample: configurations are compared on it, and nothing is estimated from it."""

    items: int = Field(100, ge=0, description="gold items set aside for it, where the gold does not say split: dev")


class AnnotateRecipe(Settings):
    """One variable, coded in one table by one or more configurations: a model with a strategy."""

    title: str = ""
    data: DataSettings
    codebook: str = "codebook.yaml"
    models: dict[str, ModelSettings]
    strategies: dict[str, StrategySettings] = {}
    examples: ExamplesSettings | None = None
    embedding: EmbeddingSettings | None = None
    wording: Wording = Wording()
    gold: GoldSettings = GoldSettings(path="gold.csv")
    dev: DevSettings = DevSettings()
    prefix: str = Field("model_", description="of the columns that are written beside the user's")
    corpus_is_sample: bool = Field(True, description="false: estimates are about these rows and no others")
    batch_size: int = Field(64, ge=1)
    ray: RaySettings | None = Field(None, description="annotate run by copies of a model, on one machine or many")
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _strategies_by_name(cls, tree: Any) -> Any:
        """`few_shot: {shots: 4}`: the name is the kind unless one is given, and a kind brings its usual settings."""
        given = tree.get("strategies") if isinstance(tree, dict) else None
        if isinstance(given, list):
            given = {name: {} for name in given}
        if not isinstance(given, dict):
            return tree
        whole = {}
        for name, settings in given.items():
            settings = settings or {}
            if isinstance(settings, dict):
                kind = settings.get("kind", name)
                settings = {"kind": kind, **DEFAULTS.get(kind, {}), **settings}
            whole[name] = settings
        return {**tree, "strategies": whole}

    @model_validator(mode="after")
    def _has_configurations(self) -> Self:
        if self.embedding is None and any(strategy.choose == EMBEDDED for strategy in self.strategies.values()):
            raise ConfigError(f"choose: {EMBEDDED} needs embedding: {{path: a folder}} in the recipe")
        asked = [name for name, model in self.models.items() if model.column is None]
        for kind, names in (("model", self.models), ("strategy", self.strategies)):
            if not names and (kind == "model" or asked):
                raise ConfigError(f"the recipe names no {kind}")
            for name in names:
                if not NAME.fullmatch(name):
                    raise ConfigError(f"the {kind} {name!r} names files and columns; expected letters, digits, _ and -")
        return self

    @property
    def configurations(self) -> dict[str, tuple[str, str]]:
        """`model.strategy` -> the two names: every model with every strategy, labels in a column as `model.given`."""
        return {
            f"{model}.{strategy}": (model, strategy)
            for model, settings in self.models.items()
            for strategy in (self.strategies if settings.column is None else (GIVEN,))
        }

    def strategy_of(self, configuration: str) -> StrategySettings:
        """The strategy of a configuration."""
        strategy = self.configurations[configuration][1]
        return self.strategies.get(strategy) or StrategySettings(kind="zero_shot", answer="free")


class Project(NamedTuple):
    """A recipe with its codebook, and the folder that both are in."""

    folder: Path
    recipe: AnnotateRecipe
    codebook: Codebook

    def file(self, name: str) -> Path:
        """A path of the recipe: relative to the recipe."""
        return self.folder / name


def read_project(path: Path, overrides: tuple[str, ...] = ()) -> Project:
    """The project whose recipe is at `path`, or is `path/recipe.yaml`. Raises `ConfigError` at what does not fit."""
    path = path / "recipe.yaml" if path.is_dir() else path
    recipe = load_recipe(path, AnnotateRecipe, overrides)
    codebook = read_codebook(path.parent / recipe.codebook)
    for name, strategy in recipe.strategies.items():
        try:
            _fits_the_level(strategy, codebook)
        except ConfigError as error:
            raise ConfigError(f"{path}: strategies.{name}: {error}") from None
    return Project(path.parent, recipe, codebook)


def _fits_the_level(strategy: StrategySettings, codebook: Codebook) -> None:
    level = codebook.level
    if strategy.answer == "letters" and level not in CLOSED:
        raise ConfigError(f"answer: letters is not for a variable of level {level}; take labels, constrained or free.")
    if strategy.answer in ("labels", "constrained") and level in (Level.SPAN, Level.FREE_TEXT):
        raise ConfigError(f"a variable of level {level} has no set of answers to choose from; take answer: free.")
    if strategy.answer == "letters" and len(codebook.labels) > len(LETTERS):
        raise ConfigError(f"{len(codebook.labels)} labels are more than there are letters; take answer: labels.")
    if strategy.answer in ("labels", "constrained") and level is Level.INTERVAL and not codebook.numbers:
        low, high = codebook.range or (0, 0)
        raise ConfigError(
            f"from {low:g} to {high:g} there are no whole numbers, or more than {MOST_NUMBERS}; take answer: free."
        )
