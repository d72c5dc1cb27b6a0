"""One round of online preference alignment: sample -> judge -> pair -> reference -> train, each a stage on disk.

<policy>/sample/<settings>/replies-*.jsonl what the policy says to the round's prompts; served/... what a server says
<arm>/round-<t>/judge/verdicts.jsonl       a score for every candidate
<arm>/round-<t>/pair/pairs.jsonl           chosen, rejected and third reply of every prompt, or why there are none
<arm>/round-<t>/reference/logprobs.jsonl   what the reference thinks of them
<arm>/round-<t>/train/                     the next policy, a Hugging Face checkpoint, and its training curve
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consilience.errors import DataError
from consilience.models import Prompt, Reply, ReplyStatus, Sampler, Sampling
from consilience.models.endpoint import Endpoint, EndpointSettings
from consilience.models.packed import can_pack, packed_attention
from consilience.models.replies import read_replies, sample_to_disk
from consilience.prefer.arm import ArmSettings, ServedModel
from consilience.prefer.data import Preference
from consilience.prefer.judging import Scorer, noisy, refuse_useless
from consilience.prefer.learn import (
    NO_THIRD,
    PairExample,
    PairExamples,
    collate_pairs,
    pair_objective,
    without_dropout,
)
from consilience.prefer.likelihood import ReadReply, score_texts
from consilience.prefer.losses import WITHOUT_REFERENCE
from consilience.prefer.pairs import JUDGED, OFFLINE, Candidate, PairStatus, pair_up
from consilience.prefer.policy import ADAPTERS, Load, Policy, Reader
from consilience.records import read_rows, write_jsonl
from consilience.rng import seed_of
from consilience.run import RunFolder, write_json
from consilience.train import finish, train

OnProgress = Callable[[str, int, int], None]
ANSWERS = "sampler.sqlite"  # what servers replied, in the run folder
Speaker = Policy | EndpointSettings


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one arm. `home` is its folder in the run; `earlier` are those of the arm's rounds before it."""

    run: RunFolder
    home: str
    number: int
    settings: ArmSettings
    prompts: Sequence[Preference]
    policy: Policy
    start: Policy
    scorer: Scorer
    annotator: float | None  # scale of the Bradley-Terry noise on scores
    seed: int
    load: Load
    reader: Reader
    earlier: Sequence[str] = ()
    pairs_of: str | None = None  # the round of another arm whose pairs are learnt from
    reference_model: Policy | None = None  # where settings.reference or settings.third is a model
    third_model: Policy | None = None
    on_progress: OnProgress = lambda what, done, total: None

    def carry_out(self) -> Policy:
        """The next policy. Every stage that is on disk already is taken from there."""
        pairs = self.run.path / self.pairs_of / "pair" if self.pairs_of else self._pair()
        examples = self._examples([*(self.run.path / home / "pair" for home in self.earlier), pairs])
        trained = self._train(examples)
        if not self.settings.train.lora:
            return Policy(trained, self.home)
        return Policy(trained, self.home, self.start.path, trained / ADAPTERS)

    # -- sample, judge, pair ---------------------------------------------------------------------------------------

    @property
    def _speaker(self) -> Speaker:
        """Who replies as the policy."""
        served = self.settings.sampler
        return served.endpoint if served and served.speaks_in(self.number) else self.policy

    @contextlib.contextmanager
    def _sampler(self, speaker: Speaker) -> Iterator[Sampler]:
        if isinstance(speaker, Policy):
            yield self.load.sampler(speaker, self.settings.train)
            return
        with Endpoint(speaker, cache=self.run.path / ANSWERS) as endpoint:
            yield endpoint

    def _sample(self, speaker: Speaker, sampling: Sampling) -> dict[str, list[Reply]]:
        """The replies of a policy, or of a server's model, to the round's prompts, by prompt."""
        sampling = sampling.model_copy(update={"seed": seed_of(self.seed, "sample", str(self.number))})
        asked: list[Any] = [[preference.id for preference in self.prompts], sampling.model_dump(mode="json")]
        if isinstance(speaker, Policy):
            home = speaker.home
        else:
            home, asked = self.start.home.removesuffix("start") + "served", [*asked, speaker.url, speaker.model]
        stage = f"{home}/sample/{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}"

        def make(folder: Path) -> None:
            prompts = [Prompt(preference.id, preference.prompt) for preference in self.prompts]
            on_progress = functools.partial(self.on_progress, f"sample {self.home}")
            with self._sampler(speaker) as sampler:
                sample_to_disk(sampler, prompts, sampling, folder, needs_all=True, on_progress=on_progress)

        found: dict[str, list[Reply]] = {}
        for reply in read_replies(self.run.stage(stage, make)):
            # Stripped: the blank in front is the template's, and would be written twice.
            found.setdefault(reply.id, []).append(replace(reply, text=reply.text.strip()))
        return found

    def _candidates(self) -> dict[str, list[Candidate]]:
        """Every prompt's replies that may become chosen or rejected, not judged yet."""
        settings = self.settings
        sampled = self._sample(self._speaker, settings.sample) if settings.pair == "best_worst" else {}
        found: dict[str, list[Candidate]] = {}
        for preference in self.prompts:
            mine = found[preference.id] = []
            if settings.offline_pair or settings.pair != "best_worst":
                pair = [(slot, getattr(preference, slot)) for slot in OFFLINE]
                mine += [Candidate(slot, text) for slot, text in pair if text and text.strip()]
            mine += [_candidate("sample", reply) for reply in sampled.get(preference.id, []) if reply.text]
        return found

    def _judge(self, candidates: Mapping[str, Sequence[Candidate]]) -> Path:
        where = f"{self.home}/judge"

        def make(folder: Path) -> None:
            rows: list[dict[str, Any]] = []
            texts_of = [[candidate.text for candidate in candidates[p.id]] for p in self.prompts]
            scored_of = self.scorer.rank(self.prompts, texts_of, functools.partial(self.on_progress, where))
            refuse_useless([scored for of_prompt in scored_of for scored in of_prompt], self.home)
            for preference, of_prompt in zip(self.prompts, scored_of, strict=True):
                mine, rewards = candidates[preference.id], [scored.value for scored in of_prompt]
                names = [f"{self.number}/{preference.id}/{candidate.slot}" for candidate in mine]
                scores = noisy(rewards, self.annotator, seed=self.seed, names=names) if self.annotator else rewards
                rows += [
                    {"id": preference.id, "slot": c.slot, "reward": scored.value, "score": score, "state": scored.state}
                    | ({"cut": True} if scored.cut else {})
                    for c, scored, score in zip(mine, of_prompt, scores, strict=True)
                ]
            write_jsonl(folder / "verdicts.jsonl", rows)

        return self.run.stage(where, make)

    def _pair(self) -> Path:
        candidates = self._candidates()
        thirds = self._thirds()
        scores: dict[tuple[str, str], float | None] = {}
        if self.settings.pair in JUDGED:
            rows = rows_of(self._judge(candidates) / "verdicts.jsonl")
            scores = {(row["id"], row["slot"]): row["score"] for row in rows}

        def make(folder: Path) -> None:
            made = [self._paired(preference, candidates, scores, thirds) for preference in self.prompts]
            write_jsonl(folder / "pairs.jsonl", made)
            write_json(folder / "counts.json", self._counts(made))

        return self.run.stage(f"{self.home}/pair", make)

    def _paired(
        self,
        preference: Preference,
        candidates: Mapping[str, Sequence[Candidate]],
        scores: Mapping[tuple[str, str], float | None],
        thirds: Mapping[str, Candidate],
    ) -> dict[str, Any]:
        """The record of one prompt: which replies are learnt from, and where they are from."""
        mine = [replace(c, score=scores.get((preference.id, c.slot))) for c in candidates[preference.id]]
        pair, by_slot = pair_up(self.settings.pair, mine), {candidate.slot: candidate for candidate in mine}
        status, third = pair.status, thirds.get(preference.id)
        if status == PairStatus.OK:
            status = self._readable(preference, [by_slot[pair.chosen], by_slot[pair.rejected]])
        if third is not None and self._readable(preference, [third]) != PairStatus.OK:
            third = None
        if status == PairStatus.OK and third is None and self.settings.loss.name == "wrpo" and self.settings.has_third:
            status = PairStatus.NO_SOURCE_REPLY
        row: dict[str, Any] = {"id": preference.id, "status": status}
        learnt = {"chosen": by_slot.get(pair.chosen), "rejected": by_slot.get(pair.rejected), "third": third}
        for name, one in learnt.items():
            row[name] = None if one is None else {"slot": one.slot, "text": one.text, "ended": one.ended}
        return row

    def _thirds(self) -> dict[str, Candidate]:
        """The third reply of every prompt that has one, by prompt."""
        speaker: Speaker
        third = self.settings.third
        if third == "policy":
            if self.settings.pair != "best_worst":
                return {}  # nothing was sampled; where it was, an arm that learns from these pairs may ask for it
            speaker, sampling, whose = self._speaker, self.settings.sample, "sample"
        elif not self.settings.has_third:
            return {}
        else:
            whose = "start" if third == "start" else "source"
            source = third.endpoint if isinstance(third, ServedModel) else self.third_model
            speaker = self.start if whose == "start" else _given(source)
            sampling = self.settings.sample.model_copy(update={"samples": 1})
        return {
            id_: _candidate(whose, replies[0])
            for id_, replies in self._sample(speaker, sampling).items()
            if replies[0].text
        }

    def _readable(self, preference: Preference, replies: Iterable[Candidate]) -> PairStatus:
        for reply in replies:
            read = self.reader(preference.id, reply.text, reply.ended)
            if read is None or not read.tokens or not read.first:
                return PairStatus.UNREADABLE
            if len(read.ids_T) > self.settings.max_tokens:
                return PairStatus.TOO_LONG
        return PairStatus.OK

    def _counts(self, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What became of the round's prompts and samples."""
        counts: dict[str, Any] = {"pairs": Counter(row["status"] for row in made)}
        learnt = [row for row in made if row["status"] == PairStatus.OK]
        for name in ("chosen", "rejected"):
            counts[name] = Counter(row[name]["slot"] for row in learnt)
        if self.settings.pair in JUDGED:
            verdicts = rows_of(self.run.path / self.home / "judge" / "verdicts.jsonl")
            counts["verdicts"] = Counter(row["state"] for row in verdicts)
            counts["cut"] = {"cut": sum("cut" in row for row in verdicts)}  # read by the judge in part only
        if self.settings.pair == "best_worst":
            replies = self._sample(self._speaker, self.settings.sample).values()
            counts["samples"] = Counter(reply.status for of_prompt in replies for reply in of_prompt)
        if self.settings.has_third:
            counts["third"] = Counter(_third_is(row) for row in learnt if row["third"])
        return counts

    # -- reference, train ------------------------------------------------------------------------------------------

    def _examples(self, folders: Sequence[Path]) -> list[PairExample]:
        """The pairs to learn from, with what the reference thinks of their replies."""
        every = [row for folder in folders for row in rows_of(folder / "pairs.jsonl")]
        rows = [row for row in every if row["status"] == PairStatus.OK]
        if not rows:
            counts = Counter(row["status"] for row in every)
            raise DataError(
                f"{self.home}: none of {len(every)} prompts has a pair to learn from: "
                f"{', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}. Look at "
                f"{folders[-1] / 'pairs.jsonl'}; the data, the judge, sample.max_new_tokens or max_tokens may be why."
            )
        of_pairs = [self._replies(row) for row in rows]
        wanted = [list(replies) if self._needs_all else list(replies[:2]) for _, replies, _ in of_pairs]
        asks = self.settings.loss.name not in WITHOUT_REFERENCE
        refs = self._reference([row["id"] for row in rows], wanted) if asks else [[] for _ in rows]
        return [
            PairExample(name, replies, (*ref, *[0.0] * (len(replies) - len(ref))), third)
            for (name, replies, third), ref in zip(of_pairs, refs, strict=True)
        ]

    @property
    def _needs_all(self) -> bool:
        """Whether the reference's opinion of the third reply has a gradient."""
        return self.settings.loss.name == "wrpo"

    def _replies(self, row: Mapping[str, Any]) -> tuple[str, tuple[ReadReply, ...], int]:
        """Name, replies as read, and the third reply's place among them."""
        third = row["third"] if self.settings.has_third else None
        is_ = _third_is(row) if third else ""
        replies = [row["chosen"], row["rejected"], *([third] if is_ == "neither" else [])]
        place = {"": NO_THIRD, "chosen": 0, "rejected": 1, "neither": 2}[is_]
        read = [_given(self.reader(row["id"], reply["text"], reply["ended"])) for reply in replies]
        return row["id"], tuple(read), place

    def _reference(self, ids: Sequence[str], replies_of: Sequence[Sequence[ReadReply]]) -> list[list[float]]:
        known = {"previous": self.policy, "start": self.start}
        reference = known.get(self.settings.reference) or _given(self.reference_model)

        def make(folder: Path) -> None:
            found = score_texts(
                self.load(reference, self.settings.train, learns=True).model,
                replies_of,
                batch_tokens=self.settings.batch_tokens,
                bfloat16=self.settings.train.dtype == "bfloat16",
                name=f"the reference {reference.path}",
            )
            sums: list[list[float]] = [[] for _ in replies_of]
            for done, (index, values) in enumerate(found, start=1):
                sums[index] = values
                self.on_progress(f"reference {self.home}", done, len(replies_of))
            write_jsonl(folder / "logprobs.jsonl", ({"id": i, "logprobs": s} for i, s in zip(ids, sums, strict=True)))

        folder = self.run.stage(f"{self.home}/reference", make)
        return [row["logprobs"] for row in rows_of(folder / "logprobs.jsonl")]

    def _train(self, examples: Sequence[PairExample]) -> Path:
        def make(folder: Path) -> None:
            # Trainer knows which GPU is this process's.
            policy = self.load(self.policy, self.settings.train, learns=True, place=False)
            longest = max(example.longest for example in examples)
            without_dropout(policy.model)
            packed = self.settings.train.padding_free and self.run.agreed(
                folder / "packed.json", lambda: can_pack(policy.model, longest)
            )
            with packed_attention(policy.model, packed):
                model, curve = train(
                    policy.model.train(),
                    PairExamples(examples),
                    collate_pairs(packed=packed),
                    pair_objective(self.settings.loss),
                    self.settings.train,
                    folder,
                    seed=seed_of(self.seed, "train", str(self.number)),  # the same order of pairs in every arm
                    adapters=folder / ADAPTERS,
                    on_step=lambda step, steps, loss: self.on_progress(f"train {self.home}", step, steps),
                )
            if self.run.leads:
                model.save_pretrained(folder)
                policy.tokenizer.save_pretrained(folder)
                write_json(folder / "curve.json", curve)
                finish(folder)

        return self.run.stage(f"{self.home}/train", make, together=True)


def _candidate(whose: str, reply: Reply) -> Candidate:
    return Candidate(f"{whose} {reply.sample}", reply.text, ended=reply.status == ReplyStatus.OK)


def _third_is(row: Mapping[str, Any]) -> str:
    """Which reply of a pair its third one is: `chosen`, `rejected` or `neither`."""
    same = ("text", "ended")
    return next(
        (name for name in ("chosen", "rejected") if all(row[name][key] == row["third"][key] for key in same)), "neither"
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file of the run."""
    return [row for _, row in read_rows(path)]


def _given(value: Any) -> Any:
    assert value is not None
    return value
