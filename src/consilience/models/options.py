"""How likely each of a few set replies is: the log-probability of every option after every prompt, in one pass.

Work is shared three ways. What all prompts begin with (a codebook) is read once and kept; a prompt is read once for
all of its options; and options that begin alike share those tokens: they form a tree, whose tokens are laid out behind
the prompt, each attending to the prompt and to its own ancestors.

Shapes: N prompts, K options, B prompts in a batch, P tokens of the shared beginning, W tokens of a prompt behind it
(padded on the left), F tokens of the tree that are read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from consilience.chat import render, render_prompt
from consilience.errors import BackendError, ConfigError
from consilience.models.load import ChatModel, context_of
from consilience.models.protocols import Ids
from consilience.records import Message

Memory = list[tuple[Tensor, Tensor]]  # keys and values of every layer, for one row
LOGITS_HELD = 1 << 25  # numbers: 128 MiB in float32
TOKENS_HELD = 1 << 16  # positions of a batch, the shared beginning counted for every prompt
WORTH_SHARING = 16  # tokens
PREFIXES_KEPT = 8  # as many orders of a codebook
TOLERANCE = 1e-3  # nats in float32, between one pass and separate ones
HALF_TOLERANCE = 0.25  # in bfloat16 or float16, whose rounding alone makes 0.1


def option_ids(tokenizer: Any, messages: Sequence[Message], options: Sequence[str]) -> tuple[list[Ids], int]:
    """The tokens that a model writes when it replies to `messages` with each of `options`, its turn's end included.

    With the second number, how many tokens at the prompt's end are not its own but merge with the reply's, and
    are to be dropped from the prompt. Raises `ConfigError` where two options are the same tokens, or one begins with
    another and the template has no end of turn to tell them apart.
    """
    prompt = render_prompt(tokenizer, messages)
    whole = [render(tokenizer, [*messages, Message("assistant", option)]) for option in options]
    shared = min([len(prompt), *(_common([prompt, each.ids_T]) for each in whole)])
    found = []
    for option, each in zip(options, whole):
        last_reply = int(each.reply_T.max())
        # The first token behind the content closes the turn; templates may write more behind it.
        ours = (each.reply_T == last_reply) & (each.reply_starts_T <= len(option.encode()))
        found.append(each.ids_T[shared : int(np.flatnonzero(ours)[-1]) + 1])
    for i, first in enumerate(found):
        for j, second in enumerate(found):
            if i != j and len(first) <= len(second) and (first == second[: len(first)]).all():
                alike = "the same tokens as" if len(first) == len(second) else "the beginning of"
                raise ConfigError(
                    f"{options[i]!r} is {alike} {options[j]!r} for the tokenizer of {tokenizer.name_or_path!r}, so "
                    "their probabilities cannot be told apart. Rename one of them, or take answer: letters."
                )
    return found, len(prompt) - shared


@dataclass
class OptionScorer:
    """Scores options with one model. What it keeps of a batch is the shared beginning, for the batches that follow."""

    chat_model: ChatModel
    kept: list[tuple[Ids, Memory]] = field(default_factory=list)
    shares: bool | None = None  # None: not tried yet

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Ids], options: Sequence[Ids]) -> NDArray[np.float64]:
        """Log-probabilities [N, K] in nats, each summed over the option's tokens; NaN where they do not fit the model.

        Raises `BackendError` where the model gives NaN.
        """
        scores_NK = np.full((len(prompts), len(options)), np.nan)
        longest = max(map(len, options))
        fits = [i for i, ids in enumerate(prompts) if self._fits(len(ids) + longest)]
        if not fits:
            return scores_NK
        if self.shares is None:
            self.shares = self._one_pass_is_right(prompts[fits[0]], options)
        shared = self.shares and self._sees(max(len(prompts[i]) for i in fits) + longest)
        beginning = min(_common([prompts[i] for i in fits]), min(len(prompts[i]) for i in fits) - 1)
        order = sorted(fits, key=lambda i: len(prompts[i]))
        for batch in self._batches(order, prompts, options):
            scores = (
                self._shared([prompts[i] for i in batch], options, beginning)
                if shared
                else np.array([self.separately(prompts[i], options) for i in batch])
            )
            if not np.isfinite(scores).all():
                raise BackendError(
                    f"model {self.chat_model.name} gives NaN, or rules out a label altogether. "
                    "Its weights may be damaged, or need another dtype (dtype: float32)."
                )
            scores_NK[batch] = scores
        return scores_NK

    def _fits(self, tokens: int) -> bool:
        return context_of(self.chat_model.model, tokens) >= tokens

    def _batches(self, order: Sequence[int], prompts: Sequence[Ids], options: Sequence[Ids]) -> list[list[int]]:
        """Prompts of like length, as many as hold the positions and logits that fit in memory."""
        tree = len(_tree(options)[0])
        most = max(1, LOGITS_HELD // (self.chat_model.vocabulary_size * (tree + 1)))
        batches: list[list[int]] = []
        for i in order:
            size = len(prompts[i]) + tree
            if not batches or len(batches[-1]) >= most or (len(batches[-1]) + 1) * size > TOKENS_HELD:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _sees(self, tokens: int) -> bool:
        """Whether attention reaches over so many tokens, in every layer."""
        window = getattr(self.chat_model.model.config.get_text_config(), "sliding_window", None)
        return not window or tokens <= window

    def _one_pass_is_right(self, prompt: Ids, options: Sequence[Ids]) -> bool:
        """Whether this architecture gives, in one pass over a kept beginning, what it gives option by option.

        Not so for models whose memory is a state (there is no tree of states), and where attention ignores the mask.
        """
        if getattr(self.chat_model.model, "_is_stateful", False):
            return False
        if not self._sees(len(prompt) + max(map(len, options))):
            return False
        tolerance = TOLERANCE if self.chat_model.model.dtype == torch.float32 else HALF_TOLERANCE
        apart = self._shared([prompt], options, len(prompt) - 1)[0] - self.separately(prompt, options)
        return bool(np.abs(apart).max() < tolerance)

    @torch.inference_mode()
    def separately(self, prompt: Ids, options: Sequence[Ids]) -> NDArray[np.float64]:
        """Log-probabilities [K], prompt and option read anew for each: what the shared pass has to equal."""
        model = self.chat_model.model
        device = next(model.parameters()).device
        found = []
        for option in options:
            ids_T = torch.from_numpy(np.concatenate([prompt, option]).astype(np.int64)).to(device)
            logits_TV = model(input_ids=ids_T[None, :-1], logits_to_keep=len(option), use_cache=False).logits[0]
            logprobs_TV = logits_TV.float().log_softmax(-1)
            found.append(float(logprobs_TV.gather(-1, ids_T[-len(option) :, None]).double().sum()))
        return np.array(found)

    def _shared(self, prompts: Sequence[Ids], options: Sequence[Ids], beginning: int) -> NDArray[np.float64]:
        model = self.chat_model.model
        device = next(model.parameters()).device
        tokens_F, parents_F, depths_F, targets = _tree(options)
        head, kept = self._beginning(prompts[0][:beginning])
        tails = [torch.from_numpy(ids[head:].astype(np.int64)) for ids in prompts]
        width, nodes = max(map(len, tails)), len(tokens_F)
        size = (len(tails), width + nodes)
        ids_BT = torch.zeros(size, dtype=torch.long)
        positions_BT = torch.zeros(size, dtype=torch.long)
        sees_BTS = torch.zeros(*size, head + width + nodes, dtype=torch.bool)
        sees_BTS[:, :, :head] = True
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        below = torch.from_numpy(_ancestors(parents_F))
        for row, tail in enumerate(tails):
            pad = width - len(tail)
            ids_BT[row, pad:width] = tail
            ids_BT[row, width:] = tokens_F
            positions_BT[row, pad:width] = head + torch.arange(len(tail))
            positions_BT[row, width:] = head + len(tail) + depths_F
            sees_BTS[row, pad:width, head + pad : head + width] = causal[pad:, pad:]
            sees_BTS[row, width:, head + pad : head + width] = True
            sees_BTS[row, width:, head + width :] = below
            sees_BTS[row, :pad, head] = True  # padding sees something: a row without any has no softmax
        # Additive, which every attention kernel takes.
        lowest = torch.finfo(model.dtype).min
        mask_B1TS = torch.where(sees_BTS, 0.0, lowest).to(model.dtype)[:, None]
        output = model(
            input_ids=ids_BT.to(device),
            attention_mask=mask_B1TS.to(device),
            position_ids=positions_BT.to(device),
            past_key_values=_for_batch(kept, len(tails)) if kept else None,
            use_cache=bool(kept),
            logits_to_keep=nodes + 1,
        )
        logits_BFV = output.logits
        norm_BF = logits_BFV.float().logsumexp(-1)
        rows, columns, option_of = targets
        found_BE = logits_BFV[:, rows, columns].float() - norm_BF[:, rows]
        scores_BK = torch.zeros(len(tails), len(options), dtype=torch.float64, device=found_BE.device)
        scores_BK.index_add_(1, option_of.to(found_BE.device), found_BE.double())
        return scores_BK.cpu().numpy()

    def _beginning(self, shared: Ids) -> tuple[int, Memory]:
        """How many tokens of `shared` are remembered, and their memory: read now unless an earlier batch did."""
        if len(shared) < WORTH_SHARING:
            return 0, []
        for place, (ids, memory) in enumerate(self.kept):
            alike = _common([ids, shared])
            if 2 * alike >= len(shared):
                if alike < len(ids):  # what the first texts happened to share beyond the codebook
                    memory = [(keys[:, :, :alike], values[:, :, :alike]) for keys, values in memory]
                    self.kept[place] = (ids[:alike], memory)
                return alike, memory
        model = self.chat_model.model
        cache = DynamicCache()
        ids_1P = torch.from_numpy(shared.astype(np.int64))[None].to(next(model.parameters()).device)
        model(input_ids=ids_1P, past_key_values=cache, use_cache=True, logits_to_keep=1)
        memory = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]
        self.kept = [(shared, memory), *self.kept[: PREFIXES_KEPT - 1]]
        return len(shared), memory


def _for_batch(memory: Memory, rows: int) -> DynamicCache:
    """The remembered keys and values for so many prompts; they are expanded, not copied, and left as they are."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(memory):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return cache


def _tree(options: Sequence[Ids]) -> tuple[Tensor, list[int], Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The tokens that have to be read, their parents (-1: the prompt) and depths; and what is looked up where.

    The lookups are rows of the logits (0: the prompt's last token, i + 1: behind token i), vocabulary places, and the
    option that each belongs to. A token that ends an option is looked up and never read.
    """
    nodes: dict[tuple[int, ...], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    rows, columns, option_of = [], [], []
    for k, option in enumerate(options):
        parent = -1
        path: tuple[int, ...] = ()
        for depth, token in enumerate(option.tolist()):
            rows.append(parent + 1)
            columns.append(token)
            option_of.append(k)
            path = (*path, token)
            if depth + 1 < len(option):
                if path not in nodes:
                    nodes[path] = len(tokens)
                    tokens.append(token)
                    parents.append(parent)
                    depths.append(depth)
                parent = nodes[path]
    lookups = (torch.tensor(rows), torch.tensor(columns), torch.tensor(option_of))
    return torch.tensor(tokens, dtype=torch.long), parents, torch.tensor(depths, dtype=torch.long), lookups


def branches(options: Sequence[Ids]) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """What options begin with, the empty beginning first; of each the tokens that may follow, and in which options."""
    found: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for k, option in enumerate(options):
        tokens = option.tolist()
        for depth, token in enumerate(tokens):
            found.setdefault(tuple(tokens[:depth]), {}).setdefault(token, []).append(k)
    return found


def _ancestors(parents: Sequence[int]) -> NDArray[np.bool_]:
    """[F, F]: whether a token of the tree sees another, itself included."""
    sees = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return sees


def _common(texts: Sequence[Ids]) -> int:
    """How many tokens all texts begin with alike."""
    length = min(map(len, texts))
    first = texts[0][:length]
    same = np.ones(length, dtype=bool)
    for other in texts[1:]:
        same &= first == other[:length]
    return length if same.all() else int(np.argmin(same))
