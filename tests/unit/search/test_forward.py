"""A tree of tokens gets the logits that reading each text in one go gives, and slots are used again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from search_models import gpt2, llama, model_of
from transformers import Gemma2Config, Gemma3TextConfig, MambaConfig, MistralConfig, Qwen2Config, Qwen3Config

from consilience.search import TreeModel
from consilience.search.tree import Node, Tree

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}
CONFIGS = {
    "gpt2": gpt2(),
    "llama": llama(),
    "mistral, window": MistralConfig(**SHAPE, sliding_window=4),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2, window in some layers": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=2
    ),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, sliding_window=4),
    "gemma3": Gemma3TextConfig(**SHAPE, sliding_window=4),
}
PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [3, 4, 5])
BRANCHES = ([2, 3, 4, 5, 6], [2, 3, 8, 5, 6], [9, 8, 7, 6, 5])


def grow(tree: Tree, branch: list[int]) -> list[Node]:
    node, path = tree.tip, []
    for token in branch:
        node, _ = tree.after(node, token)
        path.append(node)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tree_is_read_like_its_texts(name: str) -> None:
    chat_model = model_of(CONFIGS[name])
    reader = TreeModel(chat_model)
    assert reader.cached
    planted = [reader.plant(prompt) for prompt in PROMPTS]
    trees = [tree for tree, _ in planted]
    with torch.inference_mode():
        for (_, after_prompt), prompt in zip(planted, PROMPTS):
            expected = chat_model.model(torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(after_prompt, expected, atol=1e-4, rtol=1e-4)
        # Two depths at a time, two trees with different numbers of new nodes.
        paths = [[grow(tree, branch) for branch in BRANCHES[: 2 + t]] for t, tree in enumerate(trees)]
        for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
            wanted = [
                (tree, list(dict.fromkeys(node for path in several for node in path[part])))
                for tree, several in zip(trees, paths)
            ]
            logits = iter(reader.forward(wanted))
            for tree, nodes in wanted:
                for node in nodes:
                    ids, above = [], node
                    while above is not None:
                        ids.append(above.token)
                        above = above.parent
                    expected = chat_model.model(torch.tensor([ids[::-1]])).logits[0, -1]
                    torch.testing.assert_close(next(logits), expected, atol=1e-4, rtol=1e-4)
                assert tree.row >= 0


def test_slots_of_what_is_forgotten_are_used_again() -> None:
    chat_model = model_of(llama())
    reader = TreeModel(chat_model)
    tree, _ = reader.plant([5, 6, 7])
    first = [grow(tree, branch) for branch in BRANCHES]
    reader.forward([(tree, list(dict.fromkeys(node for path in first for node in path)))])
    used = tree.slots
    tree.keep([first[1][-1]])
    second = grow(tree, [2, 3, 8, 5, 6, 7, 7, 7])
    logits = reader.forward([(tree, second[5:])])
    assert tree.slots <= used
    with torch.inference_mode():
        expected = chat_model.model(torch.tensor([[5, 6, 7, 2, 3, 8, 5, 6, 7, 7, 7]])).logits[0, -3:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_tree_that_is_felled_leaves_the_others_right() -> None:
    chat_model = model_of(llama())
    reader = TreeModel(chat_model)
    trees = [reader.plant([5, 6, token])[0] for token in (7, 8, 9)]
    reader.fell(trees[0])
    logits = reader.forward([(tree, grow(tree, [2])) for tree in trees[1:]])
    with torch.inference_mode():
        expected = chat_model.model(torch.tensor([[5, 6, 8, 2], [5, 6, 9, 2]])).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_recurrent_model_is_read_without_a_cache() -> None:
    config = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, eos_token_id=1)
    chat_model = model_of(config)
    reader = TreeModel(chat_model)
    assert not reader.cached
    tree, _ = reader.plant([5, 6, 7])
    logits = reader.forward([(tree, grow(tree, [2, 3]))])
    with torch.inference_mode():
        expected = chat_model.model(torch.tensor([[5, 6, 7, 2, 3]])).logits[0, -1]
    torch.testing.assert_close(logits[-1], expected, atol=1e-4, rtol=1e-4)
