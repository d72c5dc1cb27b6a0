"""Text between two tokenizers: no half characters, the seam between prompt and reply, scores by another vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from search_models import END, gpt2, llama, model_of, plain_logprobs, prompt_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from consilience.search import METHODS, Finish, Models, Result, SearchSettings, TreeModel, search
from consilience.search.texts import Retokenizer, Said, Speaker

TEXTS = (
    "the river carries cold water",
    "größer als 😀 und 日本語 für alle",
    "a lamp stands on the table",
    "ab abab ababab",
)


def byte_level(size: int) -> Any:
    """Token 1 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


def metaspace() -> Any:
    """As Llama's: words open with a mark, and decoding drops the first one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [lambda: byte_level(300), metaspace])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_text_comes_out_as_it_is_whatever_the_chunks(make: Any, text: str, step: int) -> None:
    tokenizer = make()
    prompt, ids = tokenizer("the table")["input_ids"], tokenizer(" " + text)["input_ids"]
    if make is metaspace:
        ids = tokenizer(text)["input_ids"]
        if tokenizer.unk_token_id in ids:
            pytest.skip("characters that this tokenizer does not know")
    speaker, said, so_far = Speaker(tokenizer, prompt), "", Said()
    for end in range(step, len(ids) + step, step):
        longer, so_far = speaker.go_on(said, so_far, ids[:end])
        assert longer.startswith(said)
        assert "\ufffd" not in longer
        said = longer
    assert said == " " + text


@pytest.mark.parametrize("make", [lambda: byte_level(300), metaspace])
def test_a_text_that_goes_on_keeps_its_blank(make: Any) -> None:
    tokenizer = make()
    prompt, ids = tokenizer("a lamp")["input_ids"], tokenizer("a lamp stands")["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert Speaker(tokenizer, prompt).show(ids[len(prompt) :]) == " stands"


def test_bytes_that_are_no_character_are_said_in_the_end() -> None:
    tokenizer = byte_level(259)
    lonely = tokenizer("日")["input_ids"][0]
    said, so_far = Speaker(tokenizer, [5]).go_on("", Said(), [lonely] * 40)
    assert so_far.ids == 40
    assert "\ufffd" in said


@pytest.mark.parametrize("make", [lambda: byte_level(300), metaspace])
@pytest.mark.parametrize("prompt", ["ab ab", "a lamp", "</s>the table", "the river\n", "a  lamp on  "])
def test_the_seam_is_tokenized_as_one_text(make: Any, prompt: str) -> None:
    tokenizer = make()
    if make is metaspace and prompt == "the river\n":
        pytest.skip("no such character")
    retokenize = Retokenizer(tokenizer, tokenizer(prompt)["input_ids"])
    assert retokenize.seam
    for reply in ("", "ab", "abab", " ab", " water", "s"):
        assert retokenize(reply) == tokenizer(prompt + reply)["input_ids"]


def test_a_prompt_of_one_token_keeps_it() -> None:
    tokenizer = byte_level(300)
    (a,) = tokenizer("a")["input_ids"]
    assert Retokenizer(tokenizer, [a])("b")[0] == a


def scored(large: Any, pair: Sequence[Any], prompt: str, **settings: Any) -> Result:
    trees = [TreeModel(each) for each in (large, *pair)]
    searches, own = METHODS["cbs"](Models(*trees, raw=True), SearchSettings(top_k=0, **settings))
    (result,) = search(searches, [prompt_of(prompt)], own)
    assert isinstance(result, Result)
    return result


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_a_guide_with_another_tokenizer_scores_the_text(chunk: int | None) -> None:
    """Whatever the chunks were, the score is that of the whole text read in one go by the pair."""
    large = model_of(llama(24, vocab_size=300), seed=1, tokenizer=byte_level(300))
    small = byte_level(270)
    pair = [model_of(gpt2(vocab_size=270), seed=seed, tokenizer=small) for seed in (2, 3)]
    prompt = "the river carries"
    result = scored(large, pair, prompt, width=2, successors=3, chunk=chunk, max_new_tokens=12, temperature=1.5)
    before = small(prompt)["input_ids"]
    for reply in result.replies:
        said, _ = Speaker(large.tokenizer, large.tokenizer(prompt)["input_ids"]).go_on("", Said(), reply.ids)
        ids = small(prompt + said)["input_ids"]
        same = next((n for n, (a, b) in enumerate(zip(ids, before)) if a != b), min(len(ids), len(before)))
        ids = [*ids, *([END] if reply.finish is Finish.STOP else [])]
        tuned, untuned = (sum(plain_logprobs(each, ids, same)) for each in pair)
        assert reply.score == pytest.approx(tuned - untuned, abs=1e-3)
