"""Every search method: the same reply under the same seed, no longer than allowed, nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "search"))
from search_models import gpt2, llama, model_of, prompt_of

from consilience.errors import BackendError, ConfigError
from consilience.search import METHODS, Finish, Models, Result, SearchSettings, TreeModel, search

PROMPTS = [prompt_of("w5 w6 w7 w8", "a"), prompt_of("w9 w3", "b")]


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> Any:
    return METHODS[request.param]


@pytest.fixture(scope="module")
def models() -> Models:
    large, tuned, untuned = model_of(llama(24), seed=1), model_of(gpt2(), seed=2), model_of(gpt2(), seed=3)
    return Models(TreeModel(large), TreeModel(tuned), TreeModel(untuned), raw=True)


def replies(method: Any, models: Models, **changes: Any) -> list[Result]:
    settings = SearchSettings(**({"width": 2, "successors": 2, "chunk": 3, "max_new_tokens": 9, "top_k": 0} | changes))
    searches, settings = method(models, settings)
    found = list(search(searches, PROMPTS, settings))
    assert all(isinstance(result, Result) for result in found)
    return sorted((result for result in found if isinstance(result, Result)), key=lambda result: result.id)


def test_a_seed_gives_the_same_replies_again(method: Any, models: Models) -> None:
    first, second = replies(method, models), replies(method, models)
    assert [each.replies[0].ids for each in first] == [each.replies[0].ids for each in second]


def test_two_prompts_of_one_id_are_refused(method: Any, models: Models) -> None:
    searches, settings = method(models, SearchSettings(width=2, successors=2, chunk=3, max_new_tokens=9, top_k=0))
    searches.add(PROMPTS[0], settings)
    with pytest.raises(ConfigError, match="two prompts are called 'a'"):
        searches.add(prompt_of("w1", "a"), settings)
    assert [one.prompt for one in searches.under_way.values()] == [PROMPTS[0]]
    searches.cancel("a")


def test_a_reply_keeps_to_its_length(method: Any, models: Models) -> None:
    for result in replies(method, models):
        for reply in result.replies:
            assert len(reply.ids) <= 9
            assert (reply.finish is Finish.LENGTH) == (len(reply.ids) == 9)


def test_nothing_stays_in_the_cache(method: Any, models: Models) -> None:
    replies(method, models)
    assert models.tuned
    assert models.untuned
    assert not [*models.large.trees, *models.tuned.trees, *models.untuned.trees]


def test_a_stop_text_is_kept_out_of_the_reply(method: Any, models: Models) -> None:
    whole = replies(method, models)[0].replies[0].text.split()
    stopped = replies(method, models, stop=(whole[2],))
    assert all(whole[2] not in result.replies[0].text.split() for result in stopped)


def test_a_broken_model_is_named(method: Any) -> None:
    broken = model_of(llama(24), seed=1, name="broken")
    broken.model.get_output_embeddings().weight.data.fill_(float("nan"))
    small = TreeModel(model_of(gpt2(), seed=2))
    with pytest.raises(BackendError, match="broken answers NaN"):
        replies(method, Models(TreeModel(broken), small, small, raw=True))
