"""Reward models and rankers: transformers models that score one reply, or compare two.

Shapes: B texts in a batch, T tokens, D hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DebertaV2Model, DebertaV2PreTrainedModel

from consilience.chat import render
from consilience.errors import BackendError, DataError, pick
from consilience.judge.judges import (
    Judge,
    OnProgress,
    Prompt,
    References,
    Reply,
    dialogue,
    key_of,
    over_both_orders,
    prefer_by_scores,
    prefer_of,
    scores_of,
    sigmoid,
    turned,
)
from consilience.judge.prompts import Dialogue, transcript
from consilience.judge.readings import preference
from consilience.models import context_of
from consilience.models.load import DTYPES
from consilience.records import Judgment, VerdictState

BATCH_TOKENS = 8192
SOURCE, FIRST, SECOND = "<|source|>", "<|candidate1|>", "<|candidate2|>"
SOURCE_TOKENS, REPLY_TOKENS = 1224, 412  # PairRM's own limits


def reward_judge(path: str, *, dtype: str = "float32", code: bool = False) -> Judge:
    """Rewards by the model at `path`, in its own units; preferences are sigmoid(first - second), as it was trained.

    A chat is written with the tokenizer's chat template; without one, prompt and reply are a pair of texts. One that
    is longer than the model's positions, or gets a NaN, has no verdict.
    """
    tokenizer, model = _load(AutoModelForSequenceClassification, path, dtype, trust_remote_code=code)
    if model.config.num_labels != 1:
        raise BackendError(f"{path} has {model.config.num_labels} labels; a reward model has one.")
    if model.config.get_text_config().pad_token_id is None and tokenizer.pad_token_id is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    def rate(
        prompts: Sequence[Prompt], replies: Sequence[Reply], references: References, on_progress: OnProgress
    ) -> list[Judgment]:
        chats = [dialogue(prompt, reply) for prompt, reply in zip(prompts, replies)]
        ids: dict[int, list[int]] = {}
        found: dict[int, Judgment] = {}
        for i, chat in enumerate(chats):
            try:
                ids[i] = _ids_of(tokenizer, chat)
            except DataError as error:  # the chat template does not take this chat
                found[i] = Judgment(key=key_of(path, chat), judge=path, state=VerdictState.UNPARSED, reason=str(error))
        for i, reward in _in_batches(ids, lambda batch: model(**_padded(tokenizer, batch, model)).logits[:, 0], model):
            seen = math.isfinite(reward)
            found[i] = Judgment(
                key=key_of(path, chats[i]),
                judge=path,
                state=VerdictState.OK if seen else VerdictState.UNPARSED,
                value=reward if seen else None,
                reason="" if seen else _why(ids[i], model),
            )
            on_progress(len(found), len(prompts))
        return [found[i] for i in range(len(prompts))]

    scores = scores_of(path, rate)
    return Judge(name=path, scores=scores, prefer=prefer_by_scores(path, scores, bradley_terry=True))


def ranker_judge(path: str, *, dtype: str = "float32") -> Judge:
    """Preferences by PairRM (Jiang et al. 2023, arXiv 2306.02561), in the layout of `llm-blender/PairRM-hf`.

    The model reads the prompt and both replies at once, in both orders here; P(first) is sigmoid of its difference.
    What is longer than its limits is cut at the end, as it was when it was trained, and the judgment says so.
    """
    tokenizer, model = _load(PairRanker, path, dtype)

    def one_order(prompts: list[str], firsts: list[str], seconds: list[str]) -> Iterator[tuple[int, float, bool]]:
        read = [_pair_ids(tokenizer, *texts) for texts in zip(prompts, firsts, seconds)]
        ids = {i: ids for i, (ids, _) in enumerate(read)}
        found = _in_batches(ids, lambda batch: model(**_padded(tokenizer, batch, model)), model)
        yield from ((i, difference, read[i][1]) for i, difference in found)

    def compare(
        prompts: Sequence[Prompt],
        firsts: Sequence[Reply],
        seconds: Sequence[Reply],
        references: References,
        on_progress: OnProgress,
    ) -> list[Judgment]:
        chats = [(dialogue(prompt, a), dialogue(prompt, b)) for prompt, a, b in zip(prompts, firsts, seconds)]
        before = [transcript(first[:-1]) for first, _ in chats]
        first, second = ([pair[which][-1].content for pair in chats] for which in (0, 1))
        orders: list[dict[int, Judgment]] = [{}, {}]
        for nth, shown in enumerate(((first, second), (second, first))):
            for i, difference, cut in one_order(before, *shown):
                orders[nth][i] = replace(_compared(path, chats[i], difference, nth == 1), cut=cut)
                on_progress((len(orders[0]) + len(orders[1])) // 2, len(prompts))
        return [over_both_orders(orders[0][i], orders[1][i]) for i in range(len(prompts))]

    return Judge(name=path, prefer=prefer_of(path, compare))


class PairRanker(DebertaV2PreTrainedModel):
    """PairRM: the hidden states at the marks of the prompt and of a reply are scored together, by one head for both."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)  # the attributes' names are those of the published weights
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(config.hidden_size, config.n_tasks),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """How much better the first reply is than the second, as a logit, [B]."""
        hidden_BTD = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        marks = (self.config.source_prefix_id, self.config.cand1_prefix_id, self.config.cand2_prefix_id)
        rows_B = torch.arange(len(input_ids), device=input_ids.device)
        source_BD, first_BD, second_BD = (hidden_BTD[rows_B, (input_ids == mark).int().argmax(-1)] for mark in marks)
        first = self.head_layer(torch.cat([source_BD, first_BD], dim=-1))
        second = self.head_layer(torch.cat([source_BD, second_BD], dim=-1))
        return (first - second).mean(dim=-1)


def _load(kind: Any, path: str, dtype: str, **more: Any) -> tuple[Any, Any]:
    local = Path(path).exists()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local, **more)
        model, found = kind.from_pretrained(
            path,
            dtype=pick(DTYPES, dtype, "dtype"),
            local_files_only=local,
            use_safetensors=True,
            output_loading_info=True,
            **more,
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackendError(f"cannot load {path!r} as a judge: {reason.rstrip('.')}. Give the folder of one.") from error
    if found["missing_keys"]:
        absent = sorted(found["missing_keys"])
        raise BackendError(
            f"{path!r} is no judge of this kind: {len(absent)} of its weights are missing, {absent[0]} among them. "
            "A chat model is asked as `kind: pair` or `kind: rating`."
        )
    if torch.cuda.is_available():
        model.to("cuda")
    return tokenizer, model.eval()


def _ids_of(tokenizer: Any, chat: Dialogue) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer(transcript(chat[:-1]), chat[-1].content)["input_ids"])
    return render(tokenizer, chat).ids_T.tolist()


def _pair_ids(tokenizer: Any, prompt: str, first: str, second: str) -> tuple[list[int], bool]:
    """Prompt and replies, each behind its mark, and whether any of them was cut.

    A long prompt's tokens are cut first, and what is left is shared.
    """
    cut = False

    def ids_of(mark: str, text: str, most: int) -> list[int]:
        nonlocal cut
        for other in (SOURCE, FIRST, SECOND):  # a text that holds a mark must not get the mark's token
            text = text.replace(other, other.replace("|", "| "))
        ids = list(tokenizer(mark + text, verbose=False)["input_ids"])
        if len(ids) <= most:
            return ids
        cut = True
        return list(tokenizer(mark + text, max_length=most, truncation=True)["input_ids"])

    source = ids_of(SOURCE, prompt, SOURCE_TOKENS)
    each = (SOURCE_TOKENS + 2 * REPLY_TOKENS - len(source)) // 2
    return source + ids_of(FIRST, first, each) + ids_of(SECOND, second, each), cut


def _padded(tokenizer: Any, batch: Sequence[Sequence[int]], model: Any) -> dict[str, Tensor]:
    width = max(map(len, batch))
    pad = model.config.get_text_config().pad_token_id  # by which the model finds each text's last token
    ids_BT = torch.full((len(batch), width), next(id_ for id_ in (pad, tokenizer.pad_token_id, 0) if id_ is not None))
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(batch):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, : len(ids)] = 1
    device = next(model.parameters()).device
    return {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}


@torch.inference_mode()
def _in_batches(
    ids: dict[int, list[int]], judge_B: Callable[[list[list[int]]], Tensor], model: Any
) -> Iterator[tuple[int, float]]:
    """`(place, what the model gives)`; NaN for a text that is longer than the model's positions."""
    pads = model.config.get_text_config().pad_token_id is not None
    order = sorted(ids, key=lambda i: (len(ids[i]), i))
    while order:
        rows = max(1, BATCH_TOKENS // len(ids[order[0]])) if pads else 1
        batch = [i for i in order[:rows] if len(ids[i]) * rows <= 2 * BATCH_TOKENS] or order[:1]
        order = order[len(batch) :]
        fits = [i for i in batch if context_of(model, len(ids[i])) == len(ids[i])]
        yield from ((i, math.nan) for i in batch if i not in fits)
        if fits:
            yield from zip(fits, judge_B([ids[i] for i in fits]).float().tolist())


def _compared(path: str, chats: tuple[Dialogue, Dialogue], difference: float, swapped: bool) -> Judgment:
    key = key_of(path, chats, swapped)
    if math.isnan(difference):
        reason = "the model gave NaN, or has too few positions"
        return Judgment(key=key, judge=path, state=VerdictState.UNPARSED, swapped=swapped, reason=reason)
    reading = preference(sigmoid(difference))
    verdict = Judgment(key=key, judge=path, state=reading.state, value=reading.value)
    return turned(verdict) if swapped else verdict


def _why(ids: Sequence[int], model: Any) -> str:
    most = context_of(model, len(ids))
    return f"{len(ids)} tokens, and the model reads {most}" if most < len(ids) else "the reward is NaN or infinite"
