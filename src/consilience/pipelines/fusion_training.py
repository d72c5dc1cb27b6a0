"""The training stages of a fusion: a target trained on what it learns from, and the replies that some learn from."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from consilience.chat import Rendered, render, render_prompt
from consilience.fuse import Batches, FusionExamples, SupervisedExamples, fusion_objective
from consilience.fuse.learn import Example
from consilience.judge import open_judge
from consilience.models import ChatModel, LocalSampler, Prompt, context_of, sample_greedily
from consilience.models.packed import can_pack, packed_attention
from consilience.models.replies import read_replies, sample_to_disk
from consilience.pipelines.fusion import Fusion
from consilience.pipelines.fusion_stages import selected
from consilience.pipelines.recipe import PIVOT, REPLIES
from consilience.pipelines.replies import choose, rate_source, read_rated, write_chosen
from consilience.pipelines.targets import Target
from consilience.records import Conversation, Message, read_conversations, row_of, write_jsonl
from consilience.rng import seed_of
from consilience.run import write_json
from consilience.train import finish, train
from consilience.weights import Checkpoint

FIRST_SOURCE = 1  # the number of the first source among the teachers of a target


def trained(fusion: Fusion, target: Target) -> Path:
    """A copy of the pivot, trained on what `target` says."""
    recipe = fusion.recipe
    examples, after = _examples(fusion, target)

    def make(folder: Path) -> None:
        pivot = fusion.load(PIVOT, _trained_dtype(fusion), place=False)  # Trainer knows which GPU is this process's
        links = [fusion.matches[name].link(target.vocabulary) for name in target.sources if fusion.matches]
        longest = context_of(pivot.model, recipe.represent.max_tokens)
        batches = Batches(
            recipe.train.padding_free
            and fusion.run.agreed(folder / "packed.json", lambda: can_pack(pivot.model.eval(), longest))
        )
        with packed_attention(pivot.model, batches.packed):
            model, curve = train(
                pivot.model.train(),
                examples(pivot),
                batches,
                fusion_objective(
                    target.loss,
                    lambda teacher: links[teacher - FIRST_SOURCE].pieces,
                    chunk_temperature=recipe.chunk_temperature,
                ),
                recipe.train,
                folder,
                seed=seed_of(recipe.seed, "train"),  # the same order of examples for every target
                on_step=lambda step, steps, loss: fusion.on_progress(f"train {target.name}", step, steps),
            )
        if fusion.run.leads:
            # Targets stay in float32: a small update rounded to bfloat16 is often no update at all.
            model.save_pretrained(folder)
            pivot.tokenizer.save_pretrained(folder)
            write_json(folder / "curve.json", curve)
            write_json(folder / "batches.json", asdict(batches))
            finish(folder)

    return fusion.stage(
        f"train/{target.name}",
        make,
        after=[PIVOT, "chats", *after],
        settings=[
            recipe.train,
            target.loss,
            recipe.chunk_temperature,
            recipe.represent.max_tokens,
            recipe.represent.template,
            recipe.seed,
            recipe.threads,
        ],
        together=True,
    )


def _trained_dtype(fusion: Fusion) -> str:
    """float32, over which bfloat16 training is autocast; a pivot that LoRA leaves as it is may stay in bfloat16."""
    stored = {*Checkpoint(fusion.paths[PIVOT]).dtypes.values()}
    frozen = fusion.recipe.train.lora is not None and fusion.recipe.train.dtype == "bfloat16"
    return "bfloat16" if frozen and stored == {torch.bfloat16} else "float32"


def _examples(fusion: Fusion, target: Target) -> tuple[Callable[[ChatModel], Dataset[Example]], list[str]]:
    """What a target learns from, made of the pivot when it is trained; and the stages that it follows from."""
    if fusion.recipe.fusion.kind == "replies":
        replies = _chosen_replies(fusion) if target.sampled else fusion.train_chats
        after = [f"sample/{REPLIES}"] if target.sampled else []
        return lambda pivot: _supervised_examples(fusion, replies, pivot), after
    chosen = selected(fusion, target)
    if target.sampled:
        replies = _winners_replies(fusion, target, chosen)
        after = [f"select/{target.name}", f"sample/{target.name}"]
        return lambda pivot: _supervised_examples(fusion, replies, pivot), after
    return lambda pivot: _fusion_examples(fusion, chosen), [f"select/{target.name}"]


def _fusion_examples(fusion: Fusion, chosen: Path) -> FusionExamples:
    tokenizer, limit = fusion.tokenizer(PIVOT), fusion.representations[PIVOT].max_tokens

    @functools.lru_cache(maxsize=100_000)
    def rendered(index: int) -> Rendered:
        return render(tokenizer, fusion.train_chats[index].messages, max_tokens=limit)

    names = [chat.id for chat in fusion.train_chats]
    return FusionExamples(names, rendered, chosen, fusion.recipe.represent.shard_conversations, _learnt(fusion))


def _learnt(fusion: Fusion) -> list[int]:
    """The training chats that the pivot can read, by index."""
    learnt: list[int] = np.unique(
        np.concatenate([shard.conversation_N for shard in fusion.representations[PIVOT]])
    ).tolist()
    return learnt


def _supervised_examples(fusion: Fusion, chats: Sequence[Conversation], pivot: ChatModel) -> SupervisedExamples:
    """The chats that the pivot can read; the others were counted before."""
    limit = context_of(pivot.model, fusion.recipe.represent.max_tokens)
    read = {chat.id: fusion.as_the_pivot_reads(chat.messages, limit) for chat in chats}
    rendered = {id_: one for id_, one in read.items() if one is not None}
    return SupervisedExamples([*rendered], [*rendered.values()])


# -- replies in the place of the gold ones -----------------------------------------------------------------------------


def _chosen_replies(fusion: Fusion) -> list[Conversation]:
    """The training chats with the best-rated reply of all sources in the place of the last one."""
    recipe = fusion.recipe
    sampling, judge_settings = recipe.fusion.sampling, recipe.fusion.judge
    assert judge_settings is not None
    sampled = {}
    for name in recipe.sources:

        def sample(folder: Path, name: str = name) -> None:
            sampler = LocalSampler(fusion.opener(name)())
            on_progress = functools.partial(fusion.on_progress, f"sample {name}")
            prompts = [Prompt(chat.id, chat.prompt) for chat in fusion.train_chats]
            sample_to_disk(sampler, prompts, sampling, folder, on_progress=on_progress)

        read_as = [sampling, recipe.represent.dtype, recipe.trust_remote_code, *recipe.represent.chosen]
        sampled[name] = fusion.stage(f"replies/{name}", sample, after=["chats", name], settings=read_as)

    def rate(folder: Path) -> None:
        cache = fusion.run.path / "judge.sqlite"
        with open_judge(judge_settings, folder=fusion.places.recipe_folder, cache=cache) as judge:
            for name, stage in sampled.items():
                on_progress = functools.partial(fusion.on_progress, f"rate {name}")
                rate_source(judge, fusion.train_chats, read_replies(stage), folder / f"{name}.jsonl", on_progress)

    files = [key for key in fusion.keys if key.startswith("fusion.judge.")]
    replies = [f"replies/{name}" for name in sampled]
    rated = fusion.stage("ratings", rate, after=[*replies, *files], settings=[judge_settings])

    def pick_best(folder: Path) -> None:
        found = [read_rated(name, read_replies(stage), rated / f"{name}.jsonl") for name, stage in sampled.items()]
        chosen = choose(fusion.train_chats, itertools.chain(*found), fusion.pivot_can_read)
        write_chosen(chosen, folder)
        write_json(folder / "teachers.json", chosen.teachers)
        write_json(folder / "kept_gold.json", chosen.kept_gold)

    chosen = fusion.stage(f"sample/{REPLIES}", pick_best, after=[PIVOT, "chats", "ratings"])
    return read_conversations(chosen / "chats.jsonl")


def _winners_replies(fusion: Fusion, target: Target, chosen: Path) -> list[Conversation]:
    """The training chats, the last reply of each taken from the source that wins there; gold where none does.

    Gold stays, too, where the reply did not end or the pivot cannot read it; those are counted.
    """
    winners: list[str | None] = json.loads((chosen / "teachers.json").read_text())["conversations"]

    def make(folder: Path) -> None:
        chats = list(fusion.train_chats)
        kept_gold: Counter[str] = Counter()
        for source in target.sources:
            for index, reply, cut_off in _replies_of(fusion, source, winners):
                answered = (*chats[index].prompt, Message("assistant", reply))
                if cut_off:
                    kept_gold["reply cut off"] += 1
                    continue
                if not fusion.pivot_can_read(answered):
                    kept_gold["reply not readable by the pivot"] += 1
                    continue
                chats[index] = replace(chats[index], messages=answered)
        write_jsonl(folder / "chats.jsonl", (row_of(replace(chats[i], extra={})) for i in _learnt(fusion)))
        write_json(folder / "kept_gold.json", kept_gold)

    stage = fusion.stage(
        f"sample/{target.name}",
        make,
        after=[PIVOT, *target.sources, f"select/{target.name}"],
        settings=[fusion.recipe.represent, fusion.recipe.targets.max_new_tokens],
    )
    return read_conversations(stage / "chats.jsonl")


def _replies_of(fusion: Fusion, source: str, winners: Sequence[str | None]) -> Iterator[tuple[int, str, bool]]:
    """`(index, reply, cut_off)`: what the source answers where it wins, by index of the training chat."""
    won = [index for index, winner in enumerate(winners) if winner == source]
    if not won:
        return
    chat_model = fusion.opener(source)()
    template = fusion.shared_template
    prompts = [
        render_prompt(chat_model.tokenizer, fusion.train_chats[index].prompt, chat_template=template) for index in won
    ]
    replies = sample_greedily(chat_model, prompts, max_new_tokens=fusion.recipe.targets.max_new_tokens)
    for done, (place, reply, cut_off) in enumerate(replies, start=1):
        fusion.on_progress(f"sample {source}", done, len(won))
        yield won[place], reply.strip(), cut_off
