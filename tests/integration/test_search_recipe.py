"""The experiment of docs/search.md, made small: how many processes answer changes nothing, and a killed run goes on."""

import shutil
from pathlib import Path

import pytest

from consilience.pipelines.weak_to_strong import search_recipe

RECIPE = """
reviews: {prompts: 4, guide_seeds: 2, chats: 128, large_steps: 4, small_steps: 4, pairs: 64}
search: {max_new_tokens: 8, temperature: 0.7}
against: [base]
arms:
  base: {method: sample}
  "CBS 2,2,3": {search: {width: 2, successors: 2, chunk: 3}}
"""


@pytest.mark.slow
def test_two_processes_answer_as_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    alone = search_recipe(recipe, tmp_path / "alone")
    shutil.copytree(tmp_path / "alone", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "replies")
    told: list[tuple[str, int, int]] = []
    together = search_recipe(recipe, tmp_path / "run", ["processes=2"], on_progress=lambda *what: told.append(what))
    assert together.results == alone.results
    assert told == [("arms, 2 at a time", 0, 2), ("arms, 2 at a time", 1, 2)]
