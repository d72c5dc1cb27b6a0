"""Chunk-level beam search: its corners are the other methods, its scores and counts are what plain reading gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from search_models import END, gpt2, llama, model_of, plain_logprobs, prompt_of

from consilience.errors import ConfigError, DataError
from consilience.search import (
    METHODS,
    Finish,
    Guide,
    LargeModel,
    Models,
    Result,
    Search,
    SearchSettings,
    TreeModel,
    search,
)

PROMPTS = [prompt_of("w5 w6 w7 w8", "a"), prompt_of("w9 w3", "b", seed=3), prompt_of("w2 w2 w2 w4 w9 w9 w8", "c")]


def models(*, ends: bool = True, config: Any = None) -> Models:
    large = model_of(config or llama(24), seed=1, ends=ends)
    tuned, untuned = (model_of(gpt2(), seed=seed, ends=ends) for seed in (2, 3))
    return Models(*(TreeModel(each) for each in (large, tuned, untuned)), raw=True)


def replies(
    trio: Models, method: str = "cbs", *, batch: int = 3, prompts: Any = PROMPTS, **changes: Any
) -> dict[str, Result]:
    settings = SearchSettings(**({"width": 3, "successors": 2, "chunk": 3, "max_new_tokens": 20, "top_k": 0} | changes))
    searches, settings = METHODS[method](trio, settings)
    found = list(search(searches, prompts, settings, batch=batch))
    assert all(isinstance(result, Result) for result in found)
    return {result.id: result for result in found if isinstance(result, Result)}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_reply_does_not_depend_on_the_batch(method: str) -> None:
    trio = models()
    alone = [replies(trio, method, batch=1, prompts=[prompt])[prompt.id] for prompt in PROMPTS]
    together = replies(trio, method, batch=3)
    assert [each.replies[0].ids for each in alone] == [together[prompt.id].replies[0].ids for prompt in PROMPTS]
    assert len({each.replies[0].ids for each in alone}) == 3


@pytest.mark.parametrize("method", ["cbs", "best-of-n", "aligntree"])
def test_the_score_is_the_difference_of_plain_log_probabilities(method: str) -> None:
    trio = models()
    assert trio.tuned
    assert trio.untuned
    ended = set()
    for prompt in PROMPTS:
        result = replies(trio, method, prompts=[prompt])[prompt.id]
        for reply in result.replies:
            before = [int(word[1:]) for word in prompt.messages[0].content.split()]
            ids = [*before, *reply.ids, *([END] if reply.finish is Finish.STOP else [])]
            tuned, untuned = (plain_logprobs(each.chat_model, ids, len(before)) for each in (trio.tuned, trio.untuned))
            assert reply.score == pytest.approx(sum(tuned) - sum(untuned), abs=1e-4)
            ended.add(reply.finish)
    assert Finish.STOP in ended


def test_positions_are_the_ideal_count_where_nothing_ends() -> None:
    """P + W(C − 1) + R(T − C) in each model (references: search, section 3.2), less where siblings begin alike."""
    trio = models(ends=False)
    replies(trio, prompts=PROMPTS[:1], width=2, successors=3, chunk=4, max_new_tokens=20, temperature=5.0)
    ideal = 4 + 2 * 4 + 6 * (20 - 5)
    for each in (trio.large, trio.tuned, trio.untuned):
        assert each
        assert 0.9 * ideal < each.counts.positions <= ideal
        assert each.counts.peak_slots <= 4 + 2 * 20 + 6 * 4


def test_one_hypothesis_with_one_continuation_is_plain_sampling() -> None:
    """Against a loop over whole texts that draws by the same numbers."""
    trio = models()
    found = replies(trio, prompts=PROMPTS[:1], width=1, successors=1, temperature=0.9)["a"].replies[0]
    from consilience.rng import stream

    rng, ids = stream(0, "search", "a"), [5, 6, 7, 8]
    for _ in range(20):
        with torch.inference_mode():
            logits = trio.large.chat_model.model(torch.tensor([ids])).logits[0, -1].double() / 0.9
        probs, order = logits.softmax(-1).sort(descending=True)
        token = int(order[int(torch.searchsorted(probs.cumsum(-1), rng.random(1)[0], right=True))])
        if token == END:
            break
        ids.append(token)
    assert list(found.ids) == ids[4:]
    assert replies(trio, "sample", prompts=PROMPTS[:1], temperature=0.9)["a"].replies[0].ids == found.ids


def test_best_of_n_takes_the_best_of_n_whole_replies() -> None:
    """N samples with their own draws, scored in one go; the search must return the best of the same N."""
    trio = models()
    one = Search(LargeModel(trio.large, raw=True), trio.guide(SearchSettings()))
    settings = SearchSettings(width=1, successors=6, chunk=None, max_new_tokens=20, top_k=0)
    one.add(PROMPTS[0], settings)
    seen: list[Any] = []
    score = one.guide.score  # type: ignore[union-attr]
    one.guide.score = lambda asked: (score(asked), seen.extend(asked[0][1]))[0]  # type: ignore[union-attr, method-assign, func-returns-value]
    (update,) = one.advance()
    assert update.result
    assert len(seen) == 6
    assert update.result.replies[0].score == max(each.score for each in seen)
    assert all(each.finish for each in seen)


def test_replies_read_some_at_a_time_have_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole replies, and of chunks where one of a prompt's hypotheses ends before the others are read."""
    for settings in ({"width": 1, "successors": 8, "chunk": None}, {"width": 4, "successors": 3, "chunk": 4}):
        trio = models()
        expected = replies(trio, temperature=1.5, **settings)
        monkeypatch.setattr("consilience.search.guide.AT_ONCE", 9)
        monkeypatch.setattr("consilience.search.forward.MASK_HELD", 60)
        found = replies(trio, temperature=1.5, **settings)
        monkeypatch.undo()
        for id_, result in expected.items():
            assert [each.ids for each in found[id_].replies] == [each.ids for each in result.replies]
            scores = [each.score for each in result.replies]
            assert [each.score for each in found[id_].replies] == pytest.approx(scores, abs=1e-4)


def test_a_pair_of_equal_models_says_nothing() -> None:
    large, small = model_of(llama(24), seed=1), model_of(gpt2(), seed=2)
    trio = Models(TreeModel(large), TreeModel(small), TreeModel(small), raw=True)
    assert {each.replies[0].score for each in replies(trio).values()} == {0.0}


def test_what_is_committed_only_grows_and_is_how_the_reply_begins() -> None:
    trio = models()
    searches = Search(LargeModel(trio.large, raw=True), trio.guide(SearchSettings()))
    for prompt in PROMPTS:
        searches.add(prompt, SearchSettings(width=3, successors=3, chunk=2, max_new_tokens=30, top_k=0))
    said: dict[str, list[str]] = {prompt.id: [""] for prompt in PROMPTS}
    while searches.under_way:
        for update in searches.advance():
            assert update.committed.startswith(said[update.id][-1])
            said[update.id].append(update.committed)
    assert any(len(set(texts)) > 2 for texts in said.values())


def test_a_cancelled_prompt_leaves_the_others_as_they_were() -> None:
    trio = models()
    expected = replies(trio)
    settings = SearchSettings(width=3, successors=2, chunk=3, max_new_tokens=20, top_k=0)
    searches = Search(LargeModel(trio.large, raw=True), trio.guide(settings))
    for prompt in PROMPTS:
        searches.add(prompt, settings)
    searches.advance()
    searches.cancel("a")
    found = {}
    while searches.under_way:
        found |= {update.id: update.result for update in searches.advance() if update.result}
    assert {id_: each.replies[0].ids for id_, each in found.items()} == {
        id_: expected[id_].replies[0].ids for id_ in ("b", "c")
    }
    assert not trio.large.trees


def test_a_stop_text_ends_a_reply_and_is_not_part_of_it() -> None:
    trio = models()
    free = replies(trio, "sample", prompts=PROMPTS[:1])["a"].replies[0]
    words = free.text.split()
    stop = words[4]
    found = replies(trio, "sample", prompts=PROMPTS[:1], stop=(stop,))["a"].replies[0]
    assert found.finish is Finish.STOP
    assert found.text.split() == words[: words.index(stop)]


def test_emulated_fine_tuning_adds_the_difference_of_the_logits() -> None:
    trio = models()
    found = replies(trio, "eft", prompts=PROMPTS[:1], temperature=0, beta=0.7)["a"].replies[0]
    ids = [5, 6, 7, 8]
    for _ in range(20):
        with torch.inference_mode():
            large, tuned, untuned = (
                each.chat_model.model(torch.tensor([ids])).logits[0, -1]
                for each in (trio.large, trio.tuned, trio.untuned)
                if each
            )
        token = int((large + 0.7 * (tuned - untuned)).argmax())
        if token == END:
            break
        ids.append(token)
    assert list(found.ids) == ids[4:]


@pytest.mark.parametrize("width", [1, 4])
def test_beam_search_is_that_of_transformers(width: int) -> None:
    trio = models()
    for prompt in PROMPTS:
        ids = torch.tensor([[int(word[1:]) for word in prompt.messages[0].content.split()]])
        expected = trio.large.chat_model.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=0,
        )
        found = replies(trio, "beam", prompts=[prompt], width=width)[prompt.id].replies[0]
        end = [END] if found.finish is Finish.STOP else []
        assert [*found.ids, *end] == expected[0, ids.shape[1] :].tolist()


def test_a_guide_of_two_tokenizers_is_refused() -> None:
    with pytest.raises(ConfigError, match="different tokenizers"):
        Guide(TreeModel(model_of(gpt2(), seed=2)), TreeModel(model_of(gpt2(vocab_size=30), seed=3)))


@pytest.mark.parametrize("short", ["large", "tuned"])
def test_a_prompt_longer_than_a_context_is_refused_by_name(short: str) -> None:
    sizes = {"large": 64, "tuned": 64, "untuned": 64} | {short: 8}
    each = {name: TreeModel(model_of(gpt2(n_positions=size), seed=1, name=name)) for name, size in sizes.items()}
    searches, settings = METHODS["cbs"](Models(**each, raw=True), SearchSettings())
    ((_, error),) = search(searches, [prompt_of(" ".join(["w5"] * 9))], settings)
    assert isinstance(error, DataError)
    assert short in str(error)
    assert "9 tokens" in str(error)
    assert not each["large"].trees


def test_a_reply_ends_where_a_context_does() -> None:
    for short in ("large", "tuned"):
        sizes = {"large": 64, "tuned": 64, "untuned": 64} | {short: 12}
        each = {name: TreeModel(model_of(gpt2(n_positions=n), seed=1, ends=False)) for name, n in sizes.items()}
        result = replies(Models(**each, raw=True), prompts=PROMPTS[:1])["a"].replies[0]
        assert (result.finish, result.tokens) == (Finish.LENGTH, 8)
