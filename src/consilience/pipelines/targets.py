"""The targets of a recipe: the copies of the pivot that are trained, and what each one learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from consilience.fuse import SelectSettings
from consilience.pipelines.recipe import REPLIES, FuseRecipe, target_of


@dataclass(frozen=True, slots=True)
class Target:
    """A copy of the pivot to be trained: on whose distributions, and how they are selected."""

    name: str
    sources: tuple[str, ...]
    vocabulary: str
    select: SelectSettings
    loss: str
    sampled: bool = False  # the sources' own replies take the place of the gold ones


def targets_of(recipe: FuseRecipe) -> list[Target]:
    """Every target of the recipe, in the order of training."""
    plain = Target("", tuple(recipe.sources), recipe.align.vocabulary, recipe.select, recipe.loss)
    targets = {
        "many_to_one": replace(plain, name="many_to_one"),
        "sft": replace(plain, name="sft", sources=()),
        "seqkd": replace(plain, name="seqkd", sampled=True),
        REPLIES: replace(plain, name=REPLIES, sampled=True),
    }
    for source in recipe.sources:
        targets[target_of(source)] = replace(plain, name=target_of(source), sources=(source,))
    for name, variant in recipe.targets.variants.items():
        targets[name] = Target(
            name,
            variant.sources,
            variant.vocabulary or recipe.align.vocabulary,
            variant.select or recipe.select,
            variant.loss or recipe.loss,
            sampled=variant.seqkd,
        )
    return [targets[name] for name in recipe.target_names]
