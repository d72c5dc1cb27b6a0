"""The model card of a merge: where it comes from and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from consilience import __version__
from consilience.merge.inputs import Input
from consilience.merge.recipe import ModelRef, Recipe

CARD = """---
{front}---
# A merge by {method}

Made by Consilience {version}. Every parameter of every tensor, sampled hashes of the inputs and how far each model
moved from the base are in `manifest.json`.

| role | model |
|---|---|
{models}
{notes}
## Recipe ({dialect})
```yaml
{recipe}```
"""


def model_card(recipe: Recipe, inputs: Mapping[ModelRef, Input], donor: ModelRef, notes: Sequence[str]) -> str:
    """README.md in the hub's format. Only hub names are linked: a local folder's name would link to a stranger."""
    front: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["consilience", "merge"],
    }
    on_hub = [ref.path for ref in recipe.models if ref.path.count("/") == 1 and not is_local(recipe, ref)]
    if on_hub:
        front["base_model"] = list(dict.fromkeys(on_hub))
    rows = []
    for ref, given in inputs.items():
        roles = [role for role, of in (("base", recipe.base), ("configuration and tokenizer", donor)) if of == ref]
        if ref in {source.model for slice_ in recipe.slices for source in slice_.sources} and ref != recipe.base:
            roles.insert(0, "model")
        name = str(ref) if given.label == str(ref) else f"{given.label}: {ref}"
        rows.append(f"| {', '.join(roles) or 'named'} | `{name}` |")
    listed = "".join(f"- {note}\n" for note in notes)
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        method=recipe.method,
        version=__version__,
        models="\n".join(rows),
        notes=f"\n## Notes\n{listed}" if notes else "",
        dialect="mergekit's" if recipe.is_mergekit else "Consilience's",
        recipe=recipe.source.rstrip("\n") + "\n",
    )


def is_local(recipe: Recipe, ref: ModelRef) -> bool:
    """Whether a model was found as a folder, not on the hub."""
    return any((place / ref.path).exists() for place in (Path(), recipe.path.parent))
