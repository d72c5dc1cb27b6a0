"""Options scored in one shared pass: as likely as read one by one, whatever the architecture, template and batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from consilience.chat import render_prompt
from consilience.errors import ConfigError
from consilience.models import load_model
from consilience.models.options import OptionScorer, _tree, option_ids
from consilience.records import Message

LABELS = ["lamp", "lamp post", "river", "the sea", "bread and water"]
SYSTEM = Message("system", "Old maps show islands that no sailor ever found. She counted the stars. " * 2)
TEXTS = ["Seven birds sat.", "A lamp stands on the table near the open window.", "Bread is made", "", "Seven, seven"]


def prompts(*, system: bool = True) -> list[list[Message]]:
    return [[*([SYSTEM] if system else []), Message("user", f"Which? {text}")] for text in TEXTS]


@pytest.mark.parametrize("name", ["pivot", "wren", "finch"])
def test_one_pass_gives_what_transformers_gives_option_by_option(name: str, world: Path) -> None:
    chat_model = load_model(world / name)
    options, dropped = option_ids(chat_model.tokenizer, prompts()[0], LABELS)
    ids = [render_prompt(chat_model.tokenizer, messages) for messages in prompts()]
    ids = [each[: len(each) - dropped] for each in ids]
    scorer = OptionScorer(chat_model)
    scores_NK = scorer(ids, options)
    assert scorer.shares
    for i, messages in enumerate(prompts()):
        for k, label in enumerate(LABELS):
            # Plain transformers on the whole text, from its own chat template.
            turns = [{"role": m.role, "content": m.content} for m in (*messages, Message("assistant", label))]
            text = chat_model.tokenizer.apply_chat_template(turns, tokenize=False)
            whole = chat_model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            end = len(ids[i]) + len(options[k])
            assert whole[0, len(ids[i]) : end].tolist() == options[k].tolist()
            with torch.inference_mode():
                logprobs = chat_model.model(whole).logits[0].log_softmax(-1)
            expected = sum(float(logprobs[at - 1, whole[0, at]]) for at in range(len(ids[i]), end))
            assert scores_NK[i, k] == pytest.approx(expected, abs=2e-4)


def test_the_batch_does_not_matter(world: Path) -> None:
    chat_model = load_model(world / "finch")
    options, _ = option_ids(chat_model.tokenizer, prompts()[0], LABELS)
    ids = [render_prompt(chat_model.tokenizer, messages) for messages in prompts()]
    together = OptionScorer(chat_model)(ids, options)
    scorer = OptionScorer(chat_model)
    alone = np.concatenate([scorer([each], options) for each in ids])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    # Another beginning between, as another order of the codebook is.
    scorer([render_prompt(chat_model.tokenizer, messages) for messages in prompts(system=False)], options)
    np.testing.assert_allclose(scorer(ids, options), together, atol=1e-4)


def test_the_mass_of_options_is_a_probability(world: Path) -> None:
    """Options are closed replies, so they exclude one another."""
    chat_model = load_model(world / "pivot")
    options, dropped = option_ids(chat_model.tokenizer, prompts()[0], ["a", "b", "ab", "abc"])
    ids = [render_prompt(chat_model.tokenizer, messages) for messages in prompts()]
    scores_NK = OptionScorer(chat_model)([each[: len(each) - dropped] for each in ids], options)
    assert (np.exp(scores_NK).sum(1) < 1).all()


def test_a_prompt_beyond_the_context_has_no_scores(world: Path) -> None:
    chat_model = load_model(world / "finch")
    chat_model.model.config.max_position_embeddings = 60
    options, _ = option_ids(chat_model.tokenizer, prompts(system=False)[0], ["sea", "sky"])
    long = [Message("user", "Seven birds " * 40)]
    ids = [render_prompt(chat_model.tokenizer, messages) for messages in (prompts(system=False)[0], long)]
    scores_NK = OptionScorer(chat_model)(ids, options)
    assert np.isfinite(scores_NK[0]).all()
    assert np.isnan(scores_NK[1]).all()


def test_options_that_cannot_be_told_apart_are_refused(world: Path) -> None:
    tokenizer = load_model(world / "pivot").tokenizer
    with pytest.raises(ConfigError, match="the same tokens as"):
        option_ids(tokenizer, prompts()[0], ["æ", "ø"])  # both unknown to it
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "")
    with pytest.raises(ConfigError, match="'left' is the beginning of 'left wing'"):
        option_ids(tokenizer, prompts()[0], ["left", "left wing"])


def test_options_share_their_first_tokens() -> None:
    """Three options of 2, 3 and 2 tokens; 7 7 9 and 7 8 share the 7: two tokens are read, the last ones never."""
    tokens, parents, depths, (rows, columns, option_of) = _tree([np.array(o) for o in ([7, 8], [7, 7, 9], [5, 9])])
    assert tokens.tolist() == [7, 7, 5]
    assert parents == [-1, 0, -1]
    assert depths.tolist() == [0, 1, 0]
    assert rows.tolist() == [0, 1, 0, 1, 2, 0, 3]
    assert columns.tolist() == [7, 8, 7, 7, 9, 5, 9]
    assert option_of.tolist() == [0, 0, 1, 1, 1, 2, 2]
