"""The judges that a recipe can name, and the opening of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from consilience.config import Settings, known
from consilience.judge.functions import judge_of_function, load_function
from consilience.judge.judges import Judge, prefer_by_scores, prefer_of, scores_of
from consilience.judge.language import Answerer, Orders, Style, compare_replies, rate_replies
from consilience.judge.prompts import (
    OWN,
    PAIRS,
    PUBLISHED,
    SINGLES,
    Template,
    mt_bench_template,
    read_mt_bench_prompts,
    read_prompt,
)
from consilience.judge.readings import (
    read_mark,
    read_mt_bench_mark,
    read_mt_bench_rating,
    read_rating,
    weigh_tokens,
)
from consilience.models.endpoint import Endpoint, EndpointSettings

NEEDS = {"function": ("function",), "reward_model": ("model",), "ranker": ("model",)}
ASKED = ("endpoint", "model")


class JudgeSettings(Settings):
    """Who judges. `endpoint` or `model` says which model, `kind` how it is asked: docs/judge.md."""

    kind: Annotated[str, known(lambda: JUDGES, "judge")] = "pair"
    endpoint: EndpointSettings | None = None
    model: str | None = None  # a folder or a hub name: a model in this process
    dtype: str = "float32"
    code: bool = False  # allows the model's own Python code to run
    prompts: str | None = None  # a file; without it our own prompt
    orders: Orders | None = None  # both, except where published scores are of one order
    max_tokens: int = Field(2048, ge=1)
    top_logprobs: int = Field(20, ge=2)
    repeat: int = Field(0, ge=0)  # 1, 2, ... asks again what was asked before
    function: str | None = None  # file.py:name
    compares: bool = False  # the function compares two replies; otherwise it rates one

    @model_validator(mode="after")
    def _is_somewhere(self) -> JudgeSettings:
        named = [name for name in (*ASKED, "function") if getattr(self, name) is not None]
        needs = NEEDS.get(self.kind, ASKED)
        if len(named) != 1 or named[0] not in needs:
            raise ValueError(f"a judge of kind {self.kind!r} needs {' or '.join(needs)}; got {named or 'neither'}")
        if self.kind in ("alpaca_eval", "mt_bench") and self.prompts is None:
            raise ValueError(f"a judge of kind {self.kind!r} needs `prompts`, the file that its scores were made with")
        return self

    @property
    def files(self) -> dict[str, str]:
        """The files that it names, by what they are; what the judge says follows from them."""
        named = {"prompts": self.prompts, "function": self.function and self.function.rpartition(":")[0]}
        return {key: file for key, file in named.items() if file}


class Opening:
    """What a judge is made of: settings, the recipe's folder, the cache of answers; closes what it opened."""

    def __init__(
        self, settings: JudgeSettings, folder: Path, cache: Path | None, on_note: Callable[[str], None]
    ) -> None:
        self.settings, self.folder, self.cache, self._on_note = settings, folder, cache, on_note
        self.open_things = ExitStack()

    def answerer(self) -> Answerer:
        """The language model that is asked."""
        if self.settings.endpoint:
            endpoint = Endpoint(self.settings.endpoint, cache=self.cache, on_note=self._on_note)
            return self.open_things.enter_context(endpoint)
        from consilience.judge.local import local_answerer  # a judge behind a server needs no torch

        answerer = local_answerer(self.model(), self.settings, self.cache)
        self.open_things.callback(answerer.close)
        return answerer

    def model(self) -> str:
        """The model's folder, seen from the recipe, or its hub name."""
        path = self.folder / str(self.settings.model)
        return str(path) if path.exists() else str(self.settings.model)

    def template(self, name: str, output: str, replies: Sequence[set[str]]) -> Callable[[int, bool], Template]:
        """The prompt in the user's file, or our own one."""
        if self.settings.prompts is not None:
            template = read_prompt(self.folder / self.settings.prompts, output=output, replies=replies)
            return lambda turns, reference: template
        return lambda turns, reference: OWN.get(f"{name}-reference", OWN[name]) if reference else OWN[name]


@contextmanager
def open_judge(
    settings: JudgeSettings,
    *,
    folder: Path = Path(),
    cache: Path | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[Judge]:
    """The judge that `settings` describe. Paths are seen from `folder`, the recipe's; answers are kept in `cache`.

    Raises `ConfigError` for a missing key, `DataError` for a prompt that cannot be used, `BackendError` for a model
    that cannot be loaded.
    """
    opening = Opening(settings, folder, cache, on_note)
    with opening.open_things:
        yield JUDGES[settings.kind](opening)


def rating(opening: Opening) -> Judge:
    """Rates from 1 to 10, after an explanation."""
    style = Style(
        name="rating",
        template=opening.template("rating", "[[rating]]", SINGLES),
        read=lambda answer: read_rating(answer.text),
        max_tokens=opening.settings.max_tokens,
        repeat=opening.settings.repeat,
    )
    return language_judge(opening.answerer(), single=style)


def pair(opening: Opening) -> Judge:
    """Compares two replies, after an explanation."""
    style = Style(
        name="pair",
        template=opening.template("pair", "[[A]]", PAIRS),
        read=lambda answer: read_mark(answer.text),
        max_tokens=opening.settings.max_tokens,
        orders=opening.settings.orders or "both",
        repeat=opening.settings.repeat,
    )
    return language_judge(opening.answerer(), pair=style)


def weighted_pair(opening: Opening) -> Judge:
    """Compares two replies by the probabilities of the letters A and B."""
    return _weighing(opening, "weighted_pair", ("A", "B"), "both", opening.settings.top_logprobs)


def alpaca_eval(opening: Opening) -> Judge:
    """AlpacaEval 2's weighted judge under its own prompt: m or M, in one order that the instruction draws."""
    return _weighing(opening, "alpaca_eval", ("m", "M"), "alpaca_eval", 5)


def _weighing(opening: Opening, name: str, letters: tuple[str, str], orders: Orders, top_logprobs: int) -> Judge:
    style = Style(
        name=name,
        template=opening.template(name, " or ".join(letters), PAIRS),
        read=lambda answer: weigh_tokens(answer.tokens, *letters),
        max_tokens=1,
        temperature=1.0,  # the token that is drawn does not matter; some servers scale log-probabilities by it
        top_logprobs=top_logprobs,
        orders=opening.settings.orders or orders,
        repeat=opening.settings.repeat,
    )
    return language_judge(opening.answerer(), pair=style)


def mt_bench(opening: Opening) -> Judge:
    """MT-Bench's judge under FastChat's prompts: ratings, and comparisons in both orders by the conservative rule."""
    settings = opening.settings
    templates = read_mt_bench_prompts(opening.folder / str(settings.prompts))
    single = Style(
        name="mt_bench",
        template=partial(mt_bench_template, templates, "single"),
        read=lambda answer: read_mt_bench_rating(answer.text),
        max_tokens=settings.max_tokens,
        repeat=settings.repeat,
    )
    compared = Style(
        name="mt_bench",
        template=partial(mt_bench_template, templates, "pair"),
        read=lambda answer: read_mt_bench_mark(answer.text),
        max_tokens=settings.max_tokens,
        orders=settings.orders or "both",
        rule="conservative",
        repeat=settings.repeat,
    )
    return language_judge(opening.answerer(), single=single, pair=compared)


def language_judge(answerer: Answerer, *, single: Style | None = None, pair: Style | None = None) -> Judge:
    """A judge that asks `answerer`; one that only rates compares by its ratings."""
    style = single or pair
    assert style is not None
    name = style.named(answerer)
    scores = scores_of(name, partial(rate_replies, answerer, single)) if single else None
    prefer = prefer_of(name, partial(compare_replies, answerer, pair)) if pair else None
    if scores and not prefer:
        prefer = prefer_by_scores(name, scores, bradley_terry=False)
    return Judge(name=name, scores=scores, prefer=prefer)


def reward_model(opening: Opening) -> Judge:
    """A model for sequence classification with one label."""
    from consilience.judge.reward import reward_judge

    return reward_judge(opening.model(), dtype=opening.settings.dtype, code=opening.settings.code)


def ranker(opening: Opening) -> Judge:
    """PairRM, or a model of its kind, which reads a prompt with two replies."""
    from consilience.judge.reward import ranker_judge

    return ranker_judge(opening.model(), dtype=opening.settings.dtype)


def function(opening: Opening) -> Judge:
    """A user's Python function."""
    settings, place = opening.settings, str(opening.settings.function)
    loaded = load_function(place, opening.folder)
    return judge_of_function(place, compare=loaded) if settings.compares else judge_of_function(place, score=loaded)


JUDGES: dict[str, Callable[[Opening], Judge]] = {
    "rating": rating,
    "pair": pair,
    "weighted_pair": weighted_pair,
    "alpaca_eval": alpaca_eval,
    "mt_bench": mt_bench,
    "reward_model": reward_model,
    "ranker": ranker,
    "function": function,
}


def prompt_named(digest: str) -> str:
    """What a judgment's `prompt` is: ours, a published one, or another."""
    ours = {template.digest: f"our own {template.name!r}" for template in OWN.values()}
    return f"{digest} ({(PUBLISHED | ours).get(digest, 'no published prompt, and not ours')})"
