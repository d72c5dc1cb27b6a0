"""The model card of a fused model: where it comes from, how it was made, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from consilience.pipelines.recipe import FuseRecipe

CARD = """---
{front}---
# {title}

{note}Made by Consilience {version} from a pivot and {count} sources.

| role | model |
|---|---|
{models}

Handed over: **{result}** ({about}).

## Measured
| model | held-out NLL (nats per byte) | accuracy |
|---|---|---|
{rows}

Intervals: {level:g} %, over conversations and questions; they do not cover another training run.

## Recipe
```yaml
{recipe}```
"""


def model_card(recipe: FuseRecipe, results: Mapping[str, Any], hub_names: Sequence[str]) -> str:
    """README.md in the hub's format: front matter, provenance, measured numbers, the recipe.

    `hub_names` are those of pivot and sources that are on the hub; a local folder's name would link to a stranger.
    """
    models: Mapping[str, Any] = results["models"]
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["consilience", "knowledge-fusion", "merge"],
    }
    if hub_names:
        front["base_model"] = [*hub_names]
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=recipe.title,
        note=f"> {recipe.note}\n\n" if recipe.note else "",
        version=results["versions"].get("consilience", ""),
        count=len(recipe.sources),
        models="\n".join(
            [
                f"| pivot | `{recipe.pivot}` |",
                *(f"| source {name} | `{path}` |" for name, path in recipe.sources.items()),
            ]
        ),
        result=recipe.result_name,
        about=models[recipe.result_name]["about"],
        rows="\n".join(f"| {name} | {_shown(m['nll'])} | {_shown(m['accuracy'])} |" for name, m in models.items()),
        level=100 * recipe.evaluate.level,
        recipe=results["recipe"],
    )


def _shown(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "not measured"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
