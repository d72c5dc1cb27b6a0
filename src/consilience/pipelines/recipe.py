"""The recipe of `consilience fuse`: every setting that decides its outcome."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from consilience.align import VOCABULARY_MAPPINGS
from consilience.config import Settings, filled, known
from consilience.errors import ConfigError, pick
from consilience.evaluate import TaskSettings
from consilience.fuse import LOSSES, AlignSettings, RepresentSettings, SelectSettings
from consilience.judge import JudgeSettings
from consilience.merge import MergeSettings
from consilience.models import Sampling
from consilience.pipelines.places import FILE_NAME, FileOrShare, TinySettings
from consilience.train import TrainSettings

PIVOT = "pivot"  # what the pivot is called among the models of a run
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "samples": 4}  # of a source that teaches by replies
REPLIES = "replies"  # the target that learns what a judge chose


class DataSettings(Settings):
    """Chats to learn from: a JSONL, JSON or Parquet file, a folder of them, or the name of a `datasets` data set."""

    path: str
    split: str = "train"
    group_key: str = Field("group", description="the field that names a chat's data set or skill")
    text_key: str | None = Field(None, description="plain texts in place of chats: the field that holds one")
    limit: int | None = Field(None, ge=1)


class HeldOutSettings(FileOrShare):
    """Chats to evaluate on: a file of their own, or a share of the prompts of `data`, which then are not trained on."""

    group_key: str = "group"


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
    sampling: Annotated[Sampling, filled(**SAMPLED)] = Sampling(**SAMPLED)
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
