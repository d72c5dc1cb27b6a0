"""AlpacaEval's and MT-Bench's judges against what is stored of their judgments: prompts, order, parsing, verdicts."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from consilience.judge import alpaca_eval_swaps, over_both_orders, prompt_named
from consilience.judge.judges import Judge
from consilience.judge.mt_bench import WRONG, items, read_answers, read_questions, wrong_references
from consilience.judge.prompts import PUBLISHED, read_mt_bench_prompts
from consilience.judge.readings import read_mt_bench_mark, read_mt_bench_rating, weigh_tokens
from consilience.judge.table import JudgeSettings, Opening, alpaca_eval, mt_bench
from consilience.models.endpoint import Answer, EndpointSettings, Request, Status
from consilience.models.endpoint.answer import read_choice
from consilience.records import Judgment, VerdictState

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared judgments are not there")
Json = dict[str, Any]


def alpaca_rows(model: str) -> list[Json]:
    packed = (DATA / "alpaca_eval" / f"{model}.annotations.json.gz").read_bytes()
    found: list[Json] = json.loads(gzip.decompress(packed))
    return found


def mt_bench_rows(name: str) -> list[Json]:
    return [json.loads(line) for line in gzip.open(DATA / "mt_bench" / "judgments" / f"{name}.jsonl.gz")]


def raw(row: Json) -> Json | None:
    """The stored completion, where there is one."""
    found: Json | None = row.get("raw_completion")
    return found


class Stored:
    """Answers what is stored for a prompt, and nothing else."""

    name, notes = "stored", ()

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.requests: list[Request] = []

    def ask(self, requests: Sequence[Request], *, on_progress: Any = None) -> list[Answer]:
        self.requests += requests
        return [self.answers[request.messages[-1].content] for request in requests]


def judge_by(answers: dict[str, Answer], kind: Any, prompts: str) -> tuple[Judge, Stored]:
    """A judge of the table whose endpoint is the store."""
    stored = Stored(answers)
    settings = JudgeSettings(
        kind=kind.__name__, endpoint=EndpointSettings(url="http://127.0.0.1:1/v1", model="m"), prompts=prompts
    )
    opening = Opening(settings, DATA, None, print)
    opening.answerer = lambda: stored  # type: ignore[assignment, method-assign, return-value]
    return kind(opening), stored


def alpaca_prompt(row: Json) -> str:
    """The user's turn as alpaca_eval fills it: one placeholder after the other, the first occurrence of each."""
    text = (DATA / "alpaca_eval" / "alpaca_eval_clf.txt").read_text()
    texts = [row["output_1"], row["output_2"]]
    if alpaca_eval_swaps(row["instruction"]):
        texts.reverse()
    for name, value in zip(("instruction", "output_1", "output_2"), (row["instruction"], *texts), strict=True):
        text = text.replace("{" + name + "}", value, 1)
    return text.split("<|im_start|>user\n")[1].removesuffix("<|im_end|>").strip()


def test_alpaca_eval_s_stored_completions_give_the_stored_preferences() -> None:
    rows = [row for row in alpaca_rows("gpt35_turbo_instruct") if raw(row)]
    assert len(rows) == 801
    answers = {alpaca_prompt(row): read_choice(raw(row)) for row in rows}
    judge, stored = judge_by(answers, alpaca_eval, "alpaca_eval/alpaca_eval_clf.txt")
    judgments = judge.compares()(
        [row["instruction"] for row in rows], [row["output_1"] for row in rows], [row["output_2"] for row in rows]
    )
    for row, judgment in zip(rows, judgments, strict=True):
        # alpaca_eval counts from 1, output_1 is better, to 2, output_2 is.
        assert judgment.value is not None
        assert 2 - judgment.value == pytest.approx(row["preference"], abs=1e-9)
        assert judgment.swapped == alpaca_eval_swaps(row["instruction"])
    request = stored.requests[0]
    assert (request.max_tokens, request.temperature, request.top_logprobs) == (1, 1.0, 5)
    assert prompt_named(judgments[0].prompt) == "a9d1df00c19f8cba (alpaca_eval_clf.txt of AlpacaEval 2)"


def test_alpaca_eval_shows_the_candidate_first_in_406_of_805() -> None:
    instructions = {row["instruction"] for row in alpaca_rows("FuseChat-Llama-3.1-8B-Instruct")}
    assert len(instructions) == 805
    assert sum(map(alpaca_eval_swaps, instructions)) == 406


def test_identical_replies_are_a_tie_that_nobody_is_asked_about() -> None:
    rows = [row for row in alpaca_rows("gpt35_turbo_instruct") if row["output_1"] == row["output_2"]]
    judge, stored = judge_by({}, alpaca_eval, "alpaca_eval/alpaca_eval_clf.txt")
    (judgment,) = judge.compares()(["a"], ["same"], ["same"])
    assert (judgment.state, judgment.value) == (VerdictState.TIE, 0.5)
    assert not stored.requests
    assert {row["preference"] for row in rows} <= {1.5}


def test_without_either_letter_there_is_no_preference() -> None:
    completion = raw(next(row for row in alpaca_rows("gpt35_turbo_instruct") if raw(row)))
    assert completion is not None
    for top in completion["logprobs"]["content"][0]["top_logprobs"]:
        top["token"] = top["token"].replace("m", "x").replace("M", "X")
    assert weigh_tokens(read_choice(completion).tokens, "m", "M").state == VerdictState.UNPARSED


@pytest.mark.parametrize(
    ("name", "count", "unparsed", "outside"),
    [
        ("alvaro.single", 800, None, 0),
        ("jxiw.single", 960, None, 0),
        ("muhan.single", 320, None, 0),
        ("nathan.single", 320, None, 0),
        ("stefan.single", 160, None, 0),
        ("qwenjudge.single", 160, None, 150),
    ],
)
def test_every_stored_rating_is_read(name: str, count: int, unparsed: int | None, outside: int) -> None:
    rows = mt_bench_rows(name)
    assert len(rows) == count
    states: Counter[VerdictState] = Counter()
    for row in rows:
        reading = read_mt_bench_rating(row["judgment"])
        stated = reading.value if reading.value is not None else reading.stated
        assert (-1 if stated is None else stated) == row["score"]
        states[reading.state] += 1
    assert states[VerdictState.UNPARSED] == sum(row["score"] == -1 for row in rows)
    assert states[VerdictState.OUT_OF_RANGE] == outside


def one_order(mark: str, *, swapped: bool) -> Judgment:
    reading = read_mt_bench_mark(mark)
    value = reading.value if reading.value is None or not swapped else 1 - reading.value
    return Judgment(key=mark, judge="gpt-4", state=reading.state, value=value, swapped=swapped)


def test_every_stored_pair_is_read_and_combined_by_the_conservative_rule() -> None:
    expected = json.loads((DATA.parent / "checks" / "evaluation" / "position_swap_expected.json").read_text())
    verdicts = []
    for row in mt_bench_rows("stefan.pair"):
        games = one_order(row["g1_judgment"], swapped=False), one_order(row["g2_judgment"], swapped=True)
        won = {1.0: "model_1", 0.0: "model_2", 0.5: "tie", None: "error"}
        assert [won[game.value] for game in games] == [row["g1_winner"], row["g2_winner"]]
        verdicts.append(over_both_orders(*games, rule="conservative"))
    assert len(verdicts) == expected["n_all"]
    read = [verdict for verdict in verdicts if verdict.value is not None]
    assert len(read) == expected["n_ok"]
    assert {verdict.state for verdict in verdicts if verdict.value is None} == {VerdictState.UNPARSED}
    assert sum(verdict.consistent is True for verdict in read) == expected["consistent"]
    assert Counter(won[verdict.value] for verdict in read) == expected["fastchat_rule"]
    flips = Counter(verdict.orders[0].value for verdict in read if {o.value for o in verdict.orders} == {0.0, 1.0})
    assert flips == {1.0: expected["flips_to_first"], 0.0: expected["flips_to_second"]}
    mean = [over_both_orders(*verdict.orders).value or 0.0 for verdict in read]
    assert 1 - sum(mean) / len(mean) == pytest.approx(expected["model_2_mean_of_two_orders"], abs=1e-12)


def test_mt_bench_s_prompts_are_filled_as_fastchat_fills_them() -> None:
    folder = DATA / "mt_bench"
    questions = read_questions(folder / "question.jsonl")
    references = read_answers(folder / "reference_answer_gpt-4-0125-preview.jsonl")
    templates = {row["name"]: row for row in map(json.loads, (folder / "judge_prompts.jsonl").open())}
    replies = {q.id: (f"{{answer_a}} of {q.id}", "x [[10]] {question_1}") for q in questions}
    others = {q.id: (f"other {q.id} {{", "}}") for q in questions}
    judged = items(questions, replies, references), items(questions, others, references)
    assert len(judged[0]) == 160

    def expected(kind: str, item: Any, first: Sequence[str], second: Sequence[str]) -> str:
        math = item.question.category in ("math", "reasoning", "coding")
        name = f"{kind}-math-v1" if math else {"single": "single-v1", "pair": "pair-v2"}[kind]
        name += "-multi-turn" if item.turn == 2 else ""
        asked = item.question.turns
        fields = {"question": asked[0], "question_1": asked[0], "question_2": asked[1]}
        fields |= {"answer": first[0], "answer_1": first[0], "answer_2": first[1]}
        fields |= {"answer_a": first[0], "answer_a_1": first[0], "answer_a_2": first[1]}
        fields |= {"answer_b": second[0], "answer_b_1": second[0], "answer_b_2": second[1]}
        if math:
            reference = references[item.question.id]
            fields |= {"ref_answer_1": reference[0], "ref_answer_2": reference[1]}
        return str(templates[name]["prompt_template"].format(**fields))

    answers: dict[str, Answer] = {}
    for item in judged[0]:
        first, second = replies[item.question.id], others[item.question.id]
        for prompt in (
            expected("single", item, first, first),
            expected("pair", item, first, second),
            expected("pair", item, second, first),
        ):
            answers[prompt] = Answer(status=Status.OK, text="Rating: [[7]] or [[A]]")
    judge, stored = judge_by(answers, mt_bench, "mt_bench/judge_prompts.jsonl")
    prompts, references_of = [item.prompt for item in judged[0]], [item.reference for item in judged[0]]
    rated = judge.rates()(prompts, [item.reply for item in judged[0]], references=references_of)
    assert {judgment.value for judgment in rated} == {7.0}
    compared = judge.compares()(
        prompts, [item.reply for item in judged[0]], [item.reply for item in judged[1]], references=references_of
    )
    assert {(verdict.value, verdict.consistent) for verdict in compared} == {(0.5, False)}  # [[A]] both times
    assert {judgment.prompt for judgment in [*rated, *compared]} == PUBLISHED.keys() - {"a9d1df00c19f8cba"}
    systems = {request.messages[0].content for request in stored.requests}
    assert systems == {row["system_prompt"] for row in templates.values()}
    assert {(request.max_tokens, request.temperature) for request in stored.requests} == {(2048, 0.0)}


def test_the_wrong_references_are_known() -> None:
    folder = DATA / "mt_bench"
    assert wrong_references(read_answers(folder / "reference_answer_gpt-4.jsonl")) == sorted(WRONG)
    assert wrong_references(read_answers(folder / "reference_answer_gpt-4-0125-preview.jsonl")) == []
    assert len(WRONG) == 13


def test_every_prompt_of_the_peers_is_known_by_its_hash() -> None:
    found = {template.digest for template in read_mt_bench_prompts(DATA / "mt_bench" / "judge_prompts.jsonl").values()}
    assert found < PUBLISHED.keys()
    assert len(found) == 8
