"""The recipe of `consilience fuse`: every setting that decides its outcome, and where models and data are found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from consilience.align import VOCABULARY_MAPPINGS
from consilience.config import Settings, known
from consilience.errors import BackendError, ConfigError, nearest, pick
from consilience.evaluate import TaskSettings
from consilience.fuse import LOSSES, AlignSettings, RepresentSettings, SelectSettings
from consilience.judge import JudgeSettings
from consilience.merge import MergeSettings
from consilience.models import Sampling
from consilience.train import TrainSettings

FILE_NAME = re.compile(r"(?!.*\.partial$)\w[\w.-]*")  # names of models and tasks become folders of the run
REPLIES = "replies"  # the target that learns what a judge chose
TINY = "tiny:"  # `tiny:pivot` is a model or file that the stage "tiny" makes in the run folder
WITHOUT_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")


class TinySettings(Settings):
    """Makes the demonstration's models and data first; `tiny:NAME` in the recipe then points to them."""

    seed: int = 0
    steps_scale: float = Field(1.0, gt=0, description="shorter pretraining for tests")


class DataSettings(Settings):
    """Chats to learn from: a JSONL, JSON or Parquet file, or the name of a `datasets` data set."""

    path: str
    split: str = "train"
    group_key: str = Field("group", description="the field that names a chat's data set or skill")
    text_key: str | None = Field(None, description="plain texts in place of chats: the field that holds one")
    limit: int | None = Field(None, ge=1)


class HeldOutSettings(Settings):
    """Chats to evaluate on: a file of their own, or a share of the prompts of `data`, which then are not trained on."""

    path: str | None = None
    share: float | None = Field(None, gt=0, lt=1)
    group_key: str = "group"
    limit: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.path is None) == (self.share is None):
            raise ConfigError("held_out takes either path or share, not both and not neither")
        return self


class VariantSettings(Settings):
    """One more target, with other settings than the recipe's: for comparisons inside one run."""

    sources: tuple[str, ...]
    vocabulary: Annotated[str | None, known(lambda: VOCABULARY_MAPPINGS, "vocabulary mapping")] = None
    select: SelectSettings | None = None
    loss: Annotated[str | None, known(lambda: LOSSES, "fusion loss")] = None
    seqkd: bool = Field(False, description="the sources' own replies in place of their distributions")


class TargetSettings(Settings):
    """Which copies of the pivot are trained. Only the pairwise ones, a target per source, are merged."""

    pairwise: bool = True
    many_to_one: bool = Field(False, description="one target that learns from all sources at once")
    controls: tuple[Literal["sft", "seqkd"], ...] = Field(
        ("sft",), description="sft: the gold replies alone; seqkd: the sources' own replies in their place"
    )
    variants: dict[str, VariantSettings] = {}
    max_new_tokens: int = Field(256, ge=1, description="longest reply sampled for seqkd")


class FusionSettings(Settings):
    """What sources teach by: their distributions (FuseLLM, FuseChat), or replies that a judge rated (FuseChat-3.0)."""

    kind: Literal["distributions", "replies"] = "distributions"
    sampling: Sampling = Sampling(temperature=0.8, top_p=0.95, samples=4)
    judge: JudgeSettings | None = Field(None, description="who rates the replies")

    @model_validator(mode="after")
    def _has_a_judge(self) -> Self:
        if (self.kind == "replies") != (self.judge is not None):
            raise ConfigError("fusion.kind: replies needs fusion.judge, and distributions are taught without one")
        return self


class AssumedSettings(Settings):
    """What a dry run and a rehearsal go by where the hub cannot be asked. A real run reads none of it."""

    architectures: dict[str, str] = Field({}, description="by the name of a model: one of ARCHITECTURES")
    chats: int | None = Field(None, ge=1, description="in the data")
    tokens: int = Field(800, ge=2, description="of an average chat, template and prompt included")
    reply_tokens: int = Field(500, ge=1, description="of them, those of replies")


class EvaluateSettings(Settings):
    """How every model of the run is measured."""

    max_tokens: int = Field(2048, ge=2)
    batch_tokens: int = Field(8192, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    level: float = Field(0.95, gt=0, lt=1)


class FuseRecipe(Settings):
    """Several chat models in, one fused model and its report out."""

    title: str = "Fused model"
    note: str | None = None
    tiny: TinySettings | None = None
    pivot: str
    sources: dict[str, str]
    data: DataSettings
    held_out: HeldOutSettings = HeldOutSettings(share=0.05)
    fusion: FusionSettings = FusionSettings()
    represent: RepresentSettings = RepresentSettings()
    align: AlignSettings = AlignSettings()
    select: SelectSettings = SelectSettings()
    loss: Annotated[str, known(lambda: LOSSES, "fusion loss")] = "ce"
    chunk_temperature: float = Field(1.0, gt=0, description="of the chunk likelihoods that select.teach may teach")
    train: TrainSettings = TrainSettings()
    targets: TargetSettings = TargetSettings()
    merges: dict[str, MergeSettings] = {"sce": MergeSettings(method="sce")}
    tasks: dict[str, TaskSettings] = {}
    evaluate: EvaluateSettings = EvaluateSettings()
    assumed: AssumedSettings = AssumedSettings()
    result: str | None = Field(None, description="the model that is handed over; default: the first merge or target")
    seed: int = 0
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default: one per core")
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _replies_make_one_target(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Replies are learnt by one target from all sources: there is nothing to merge."""
        fusion, targets = (tree.get(key) or {} for key in ("fusion", "targets"))
        if not isinstance(fusion, dict) or not isinstance(targets, dict) or fusion.get("kind") != "replies":
            return tree
        return {"merges": {}} | tree | {"targets": {"pairwise": False} | targets}

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if len(self.sources) < 2:
            raise ConfigError(f"sources: got {len(self.sources)}, expected two or more, each as name: path")
        twins = [name for name, path in self.sources.items() if path == self.pivot]
        if twins:
            raise ConfigError(
                f"the pivot {self.pivot!r} is also among the sources ({', '.join(twins)}); remove it there"
            )
        for name, variant in self.targets.variants.items():
            for source in variant.sources:
                if source not in self.sources:
                    raise ConfigError(f"targets.variants.{name}: no source is called {source!r}")
        self._refuse_idle_vocabulary()
        names = ["pivot", *self.sources, *self.target_names, *self.merges]
        for name in (*names, *self.tasks):
            if not FILE_NAME.fullmatch(name):
                raise ConfigError(f"{name!r} cannot name a folder; expected letters, digits, '_', '-' and '.'")
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ConfigError(
                f"two models are called {', '.join(doubled)}; every name in a recipe stands for one model"
            )
        if (self.data.text_key is None) == (self.represent.template == "text"):
            raise ConfigError(
                "data.text_key and represent.template: text go together: they are for base models, which read no chats"
            )
        if self.represent.template == "text" and "seqkd" in self.targets.controls:
            raise ConfigError("targets.controls: seqkd needs chats; plain texts have no prompt to answer")
        if self.fusion.kind == "replies":
            self._refuse_distributions()
        if self.merges and not self.targets.pairwise:
            raise ConfigError("merges need targets.pairwise: true, because the pairwise targets are what is merged")
        for name, merge in self.merges.items():
            try:
                merge.parameters_for(len(self.sources))
            except ConfigError as error:
                raise ConfigError(f"merges.{name}: {error}") from None
        if not (self.merges or self.target_names):
            raise ConfigError("nothing would be made: expected targets.pairwise, targets.many_to_one or a variant")
        pick(dict.fromkeys([*self.target_names, *self.merges]), self.result_name, "target or merge")
        return self

    def _refuse_distributions(self) -> None:
        """What only distributions can make, in a recipe that teaches by replies."""
        targets = self.targets
        asked = {
            "targets.pairwise": targets.pairwise,
            "targets.many_to_one": targets.many_to_one,
            "targets.controls: seqkd": "seqkd" in targets.controls,
            "targets.variants": bool(targets.variants),
            "merges": bool(self.merges),
            "data.text_key": self.data.text_key is not None,
        }
        for name, given in asked.items():
            if given:
                raise ConfigError(
                    f"{name} needs fusion.kind: distributions; replies make one target, called {REPLIES!r}"
                )

    def _refuse_idle_vocabulary(self) -> None:
        """A vocabulary mapping that is asked for, and that nothing taught goes through, would change nothing."""
        selects = {name: variant.select or self.select for name, variant in self.targets.variants.items()}
        asked = [f"targets.variants.{name}" for name, variant in self.targets.variants.items() if variant.vocabulary]
        idle = [place for place in asked if selects[place.rpartition(".")[2]].teach != "tokens"]
        if "vocabulary" in self.align.model_fields_set and "tokens" not in {
            self.select.teach,
            *(select.teach for select in selects.values()),
        }:
            idle.append("align")
        if idle:
            raise ConfigError(
                f"{idle[0]}.vocabulary is given, but only select.teach=tokens goes through a vocabulary mapping. "
                "Give select.teach=tokens there, or leave the vocabulary out."
            )

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of all trained copies of the pivot, in the order of training."""
        return (
            *self.targets.controls,
            *(target_of(source) for source in self.sources if self.targets.pairwise),
            *((REPLIES,) if self.fusion.kind == "replies" else ()),
            *(("many_to_one",) if self.targets.many_to_one else ()),
            *self.targets.variants,
        )

    @property
    def result_name(self) -> str:
        """The model that the run hands over: a control only where nothing else is made."""
        fused = [name for name in self.target_names if name not in self.targets.controls]
        return self.result or next(iter([*self.merges, *fused, *self.targets.controls]))


def target_of(source: str) -> str:
    """The name of the pairwise target of a source."""
    return f"fused_{source}"


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
        return not self.file(name).exists() and name.count("/") <= 1 and not Path(name).suffix

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
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            patterns = [*WITHOUT_WEIGHTS, *(("*.safetensors",) if weights else ())]
            return Path(snapshot_download(name, allow_patterns=patterns))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BackendError(
                f"model {name!r} is no local folder and cannot be fetched from the hub: {reason.rstrip('.')}. "
                "Give a local folder, or download it where there is a network."
            ) from None
