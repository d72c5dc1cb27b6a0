"""The client against a server that misbehaves: every request ends with a status, and nothing is asked twice."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from consilience.config import parse
from consilience.errors import ConfigError, DataError
from consilience.models import Prompt, ReplyStatus, Sampling
from consilience.models.endpoint import Answer, Endpoint, EndpointSettings, Request, Status, notes_kept, samples
from consilience.records import Message
from fake_endpoint import Json, Reply, choices, echo, fake_server


def endpoint(url: str, cache: Path | None = None, on_note: Any = lambda note: None, **settings: Any) -> Endpoint:
    settings = {"timeout_s": 20, "backoff_s": 0.001, "concurrency": 4} | settings
    return Endpoint(EndpointSettings(url=url, model="m", **settings), cache=cache, on_note=on_note)


def questions(count: int, **settings: Any) -> list[Request]:
    return [Request(messages=(Message("user", f"question {i}"),), max_tokens=8, **settings) for i in range(count)]


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


GOOD = choices("fine")
FAULTS = {
    "too many requests": Reply(b"{}", 429, {"Retry-After": "0.05"}),
    "server error": Reply({"error": {"message": "overloaded"}}, 500),
    "bad gateway, in HTML": Reply(b"<html><script>alert(1)</script></html>", 502),
    "time-out": Reply(GOOD, delay_s=3),
    "slow stream": Reply(GOOD, trickle_s=0.05),
    "truncated": Reply(GOOD, cut_at=40),
    "half of the JSON": Reply(b'{"choices": [{"index": 0, "mess'),
    "not JSON": Reply(b"fine"),
    "a list": Reply(b"[]"),
    "no choices": Reply({"choices": []}),
    "no message": Reply({"choices": [{"index": 0}]}),
    "an error with status 200": Reply({"error": {"message": "provider down", "code": 502}}),
    "reset": Reply(reset=True),
}


def patience_s(fault: str) -> float:
    """Enough for a busy machine, except where a time-out is what is tested."""
    return 1.0 if fault in ("time-out", "slow stream") else 20.0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_waited_out(fault: str) -> None:
    with fake_server(lambda body, nth: FAULTS[fault] if nth == 0 else Reply(GOOD)) as server:
        with endpoint(server.url, timeout_s=patience_s(fault)) as client:
            (answer,) = client.ask(questions(1))
        assert (answer.status, answer.text) == (Status.OK, "fine")
        assert len(server.asked) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_in_a_status_with_its_reason(fault: str) -> None:
    def behave(body: Json, nth: int) -> Reply:
        return FAULTS[fault] if body["messages"][-1]["content"] == "question 1" else echo(body, nth)

    with fake_server(behave) as server:
        with endpoint(server.url, timeout_s=patience_s(fault), retries=1) as client:
            answers = client.ask(questions(4))
        assert [answer.status for answer in answers] == ["ok", "api_error", "ok", "ok"]
        assert answers[1].reason
        assert answers[1].reason.isprintable()
        assert Counter(server.contents) == {"question 0": 1, "question 1": 2, "question 2": 1, "question 3": 1}


def test_retry_after_is_honoured_by_all_threads() -> None:
    with fake_server(
        lambda body, nth: Reply(b"", 429, {"Retry-After": "0.4"}) if nth == 0 else echo(body, 0)
    ) as server:
        with endpoint(server.url, concurrency=1) as client:
            client.ask(questions(3))
        times = [asked.at for asked in server.asked]
    assert len(times) == 4
    assert times[1] - times[0] >= 0.39


def test_a_wait_that_is_too_long_is_refused_with_its_length() -> None:
    with fake_server(lambda body, nth: Reply(b"", 429, {"Retry-After": "3600"})) as server:
        with endpoint(server.url, concurrency=1) as client:
            answers = client.ask(questions(30))
        assert len(server.asked) == 1
    assert {answer.status for answer in answers} == {Status.API_ERROR}
    assert "asks to wait for 3600 s" in answers[0].reason


def test_a_wrong_model_is_not_asked_for_805_times() -> None:
    error = {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}
    with fake_server(lambda body, nth: Reply(error, 404)) as server:
        with endpoint(server.url) as client:
            answers = client.ask(questions(50))
        assert len(server.asked) <= 4
    assert len(answers) == 50
    assert {answer.status for answer in answers} == {Status.API_ERROR}
    assert all("The model `m` does not exist" in answer.reason for answer in answers)


def test_a_server_that_is_not_there_is_given_up_soon() -> None:
    with fake_server() as server:
        url = server.url
    with endpoint(url, retries=2) as client:
        answers = client.ask(questions(200))
    assert {answer.status for answer in answers} == {Status.API_ERROR}
    assert "cannot be reached" in answers[-1].reason


def test_a_question_that_is_refused_is_no_ones_but_its_own() -> None:
    def behave(body: Json, nth: int) -> Reply:
        said = body["messages"][-1]["content"]
        if said == "question 1":
            return Reply({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400)
        if said == "question 2":
            return Reply({"error": {"message": "filtered", "code": "content_filter"}}, 400)
        return echo(body, nth)

    with fake_server(behave) as server, endpoint(server.url) as client:
        answers = client.ask(questions(4))
        assert len(server.asked) == 4
    assert [answer.status for answer in answers] == ["ok", "api_error", "refused", "ok"]
    assert answers[1].reason == "HTTP 400: too long"


def test_redirects_are_not_followed() -> None:
    with fake_server() as other, fake_server(lambda b, n: Reply(b"", 307, {"Location": other.url})) as server:
        with endpoint(server.url) as client:
            (answer,) = client.ask(questions(1))
        assert answer.status == Status.API_ERROR
        assert not other.asked


# Nothing is asked twice.


def test_answers_are_kept(tmp_path: Path) -> None:
    top = {"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": [{"token": "a", "logprob": -0.1}]}
    body = choices("a \ud800 {<b>\x1b[31m", logprobs={"content": [top]})
    with fake_server(lambda b, n: Reply(body)) as server:
        with endpoint(server.url, tmp_path / "a.sqlite") as client:
            first = client.ask(questions(3, top_logprobs=1))
        with endpoint(server.url, tmp_path / "a.sqlite") as client:
            again = client.ask(questions(3, top_logprobs=1))
            assert client.spent.calls == 3
        assert len(server.asked) == 3
    assert [answer.cached for answer in again] == [True] * 3
    for fresh, kept in zip(first, again, strict=True):
        assert (fresh.text, fresh.tokens, fresh.raw) == (kept.text, kept.tokens, kept.raw)
        assert (fresh.model, fresh.prompt_tokens, fresh.status) == (kept.model, kept.prompt_tokens, kept.status)
    assert [path.name for path in tmp_path.iterdir()] == ["a.sqlite"]


def test_whatever_decides_the_answer_is_part_of_its_key() -> None:
    first = questions(1)[0]
    others = [
        *questions(2)[1:],
        *questions(1, temperature=0.5),
        *questions(1, top_p=0.5),
        *questions(1, seed=1),
        *questions(1, stop=("x",)),
        *questions(1, top_logprobs=5),
        *questions(1, extra={"top_k": 3}),
        *samples(first, 2)[1:],
        Request(messages=(Message("system", "question 0"),), max_tokens=8),
        Request(prompt="question 0", max_tokens=8),
        Request(messages=first.messages, max_tokens=9),
    ]
    keys = [request.key("http://a/v1", "m") for request in [first, *others]]
    keys += [first.key("http://b/v1", "m"), first.key("http://a/v1", "n")]
    assert len(set(keys)) == len(keys)
    assert questions(1)[0].key("http://a/v1", "m") == keys[0]


def test_the_same_question_many_times_is_asked_once() -> None:
    with fake_server(lambda b, n: echo(b, n)._replace(delay_s=0.05)) as server, endpoint(server.url) as client:
        assert texts(client.ask(questions(1) * 20)) == ["echo question 0"] * 20
        assert len(server.asked) == 1


def test_threads_do_not_ask_the_same_question(tmp_path: Path) -> None:
    with fake_server(lambda b, n: echo(b, n)._replace(delay_s=0.02)) as server:
        with endpoint(server.url, tmp_path / "a.sqlite") as client:
            threads = [threading.Thread(target=client.ask, args=(questions(10),)) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        assert sorted(server.contents) == sorted(f"question {i}" for i in range(10))


CHILD = """
import signal
import sys
from pathlib import Path
from consilience.models.endpoint import Endpoint, EndpointSettings, Request
from consilience.records import Message

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
url, cache = sys.argv[1:]
requests = [Request(messages=(Message("user", f"question {i}"),), max_tokens=8) for i in range(40)]
with Endpoint(EndpointSettings(url=url, model="m", concurrency=4), cache=Path(cache)) as endpoint:
    for place, answer in endpoint.each(requests):
        print(f"{place} {answer.status} {answer.text}", flush=True)
"""


def child(url: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, url, str(cache)], stdout=subprocess.PIPE, text=True)


def stopped_after(process: subprocess.Popen[str], lines: int, by: signal.Signals) -> set[str]:
    """What the process had printed when it was stopped."""
    assert process.stdout is not None
    patience = threading.Timer(120, process.kill)
    patience.start()
    seen = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(by)
    rest = process.stdout.read()
    patience.cancel()
    code = process.wait()
    assert code == -signal.SIGKILL if by == signal.SIGKILL else code not in (0, -signal.SIGKILL)
    return {line.split()[0] for line in [*seen, *rest.splitlines()] if line.split()[1:2] == ["ok"]}


def slow(body: Json, nth: int) -> Reply:
    return echo(body, nth)._replace(delay_s=0.03)


@pytest.mark.parametrize("lines", [1, 9, 23])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_stop_loses_no_answer(by: signal.Signals, lines: int, tmp_path: Path) -> None:
    cache = tmp_path / "answers.sqlite"
    with fake_server(slow) as server:
        seen = stopped_after(child(server.url, cache), lines, by)
        before = len(server.asked)
        assert len(seen) >= lines
        assert before < 40
        out, _ = child(server.url, cache).communicate(timeout=60)
        asked = Counter(server.contents)
    assert sorted(out.splitlines()) == sorted(f"{i} ok echo question {i}" for i in range(40))
    again = {content for content, times in asked.items() if times > 1}
    assert not again & {f"question {place}" for place in seen}
    # Ctrl-C waits for the answers under way; a kill cannot, and they are counted.
    assert len(again) == 0 if by == signal.SIGINT else len(again) <= 4
    with Endpoint(EndpointSettings(url=server.url, model="m"), cache=cache) as client:
        assert client.spent.calls == 40
        assert len(again) <= client.spent.lost <= 4


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    with fake_server(slow) as server:
        both = [child(server.url, tmp_path / "answers.sqlite") for _ in range(2)]
        outs = [process.communicate(timeout=60)[0] for process in both]
        assert Counter(server.contents) == {f"question {i}": 1 for i in range(40)}
    assert all(len(out.splitlines()) == 40 for out in outs)


# Several samples, log-probabilities.


def test_samples_are_one_call(tmp_path: Path) -> None:
    with fake_server(lambda b, n: Reply(choices(*"abcd"[: b.get("n", 1)]))) as server:
        with endpoint(server.url, tmp_path / "a.sqlite") as client:
            assert texts(client.ask(samples(questions(1)[0], 3))) == ["a", "b", "c"]
            # Of five, three are there already.
            assert texts(client.ask(samples(questions(1)[0], 5))) == ["a", "b", "c", "a", "b"]
            assert not client.notes
        assert [asked.body.get("n") for asked in server.asked] == [3, 2]


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_without_n_is_asked_once_a_sample(refuses: bool) -> None:
    def behave(body: Json, nth: int) -> Reply:
        if refuses and "n" in body:
            return Reply({"error": {"message": "n must be 1"}}, 400)
        return Reply(choices(f"seed {body['seed']}"))

    notes: list[str] = []
    with fake_server(behave) as server, endpoint(server.url, on_note=notes.append, concurrency=1) as client:
        for request in questions(2, seed=7):
            assert texts(client.ask(samples(request, 3))) == ["seed 7", "seed 8", "seed 9"]
        assert len(server.asked) == (7 if refuses else 6)
    assert len(notes) == 1
    assert "asked once for each sample" in notes[0]


def test_samples_that_are_all_the_same_are_said() -> None:
    # transformers serve does so where the model's generation configuration lacks do_sample, whatever the temperature.
    with fake_server(lambda b, n: Reply(choices("The same words, whatever the seed and the temperature."))) as server:
        with endpoint(server.url) as client:
            client.ask(samples(questions(1, temperature=0.0)[0], 2))
            assert not any("all the same" in note for note in client.notes)
            client.ask(samples(questions(1, temperature=1.0)[0], 2))
            assert "the samples of a reply were all the same: perhaps the server does not sample" in client.notes


def test_missing_log_probabilities_are_said() -> None:
    with fake_server() as server, endpoint(server.url) as client:
        answers = client.ask(questions(3, top_logprobs=5))
        assert server.asked[0].body["top_logprobs"] == 5
        assert server.asked[0].body["logprobs"] is True
        assert client.notes == ["the server gives no log-probabilities, although they were asked for"]
    assert [answer.tokens for answer in answers] == [None] * 3


def test_an_endpoint_is_a_sampler() -> None:
    def behave(body: Json, nth: int) -> Reply:
        said = body["messages"][-1]["content"]
        if said == "filtered":
            return Reply(choices("", finish="content_filter"))
        return Reply(choices("", "long", finish="length" if said == "long" else "stop"))

    prompts = [Prompt(said, (Message("user", said),)) for said in ("short", "long", "filtered")]
    with fake_server(behave) as server, endpoint(server.url) as client:
        sampling = Sampling(temperature=0.5, top_k=3, samples=2, max_new_tokens=9)
        found = {(reply.id, reply.sample): (reply.status, reply.text) for reply in client.sample(prompts, sampling)}
    assert found[("short", 0)] == (ReplyStatus.EMPTY, "")
    assert found[("short", 1)] == (ReplyStatus.OK, "long")
    assert found[("long", 1)] == (ReplyStatus.TRUNCATED, "long")
    assert found[("filtered", 0)] == (ReplyStatus.REFUSED, "")
    body = server.asked[0].body
    assert (body["n"], body["temperature"], body["top_k"], body["max_tokens"]) == (2, 0.5, 3, 9)
    assert len({asked.body["seed"] for asked in server.asked if "n" in asked.body}) == 3


def test_completions() -> None:
    logprobs = {"tokens": [" x"], "token_logprobs": [-0.5], "top_logprobs": [{" x": -0.5}]}
    body = {"model": "m", "choices": [{"text": " x", "finish_reason": "stop", "logprobs": logprobs}]}
    with fake_server(lambda b, n: Reply(body)) as server, endpoint(server.url) as client:
        (answer,) = client.ask([Request(prompt="2 +", max_tokens=1, top_logprobs=1, stop=("\n",))])
        assert server.asked[0].path == "/v1/completions"
        assert server.asked[0].body == {"model": "m", "prompt": "2 +", "max_tokens": 1, "stop": ["\n"], "logprobs": 1}
        assert client.notes == ["the server states no usage: calls are counted at the most that they can have cost"]
    assert answer.text == " x"
    assert answer.tokens is not None
    assert answer.tokens[0].top == ((" x", -0.5),)


def test_what_a_server_does_otherwise_is_known_to_whoever_goes_on_with_its_answers(tmp_path: Path) -> None:
    body = {"model": "m", "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    note = "the server states no usage: calls are counted at the most that they can have cost"
    asked = [Prompt("p", (Message("user", "really?"),))]
    with fake_server(lambda b, n: Reply(body)) as server:
        for _ in range(2):  # the second time from the cache
            told: list[str] = []
            with endpoint(server.url, tmp_path / "a.sqlite", on_note=told.append) as client:
                (reply,) = client.sample(asked, Sampling(max_new_tokens=8))
                assert reply.tokens is None  # not the most that it can have been
                assert client.spent.completion_tokens == 8
                assert client.notes == [note]
        assert len(server.asked) == 1
        assert notes_kept(tmp_path / "a.sqlite", EndpointSettings(url=server.url, model="m")) == [note]
        assert notes_kept(tmp_path / "a.sqlite", EndpointSettings(url=server.url, model="other")) == []
        assert notes_kept(tmp_path / "no.sqlite", EndpointSettings(url=server.url, model="m")) == []


# Money, keys, rates.

PRICE = {"input": 1e6, "output": 2e6}  # so that a token in costs 1, and one out 2


def test_a_budget_is_kept_over_runs(tmp_path: Path) -> None:
    # The most a question can cost: 10 bytes + 2 x 64 tokens of template, and 8 tokens out at 2 each: 154. It costs 20.
    settings: Json = {"price": PRICE, "budget": {"money": 200}, "concurrency": 2}
    with fake_server() as server:
        for _ in range(2):
            with endpoint(server.url, tmp_path / "a.sqlite", **settings) as client:
                answers = client.ask(questions(10))
                spent = client.spent
                assert Counter(answer.status for answer in answers) == {Status.OK: 3, Status.OVER_BUDGET: 7}
        assert len(server.asked) == 3  # 0, 20, 40 leave room for 154; 60 does not
    assert (spent.calls, spent.money, spent.prompt_tokens, spent.completion_tokens) == (3, 60, 30, 15)
    refused = next(answer for answer in answers if answer.status == Status.OVER_BUDGET)
    assert "so far 3 calls, 30 tokens in, 15 out, 60 in money" in refused.reason


def test_a_call_that_may_have_been_paid_counts_against_the_budget() -> None:
    with fake_server(lambda b, n: Reply(GOOD, cut_at=30)) as server:
        with endpoint(server.url, price=PRICE, budget={"money": 400}, concurrency=1) as client:
            (answer,) = client.ask(questions(1))
            assert answer.status == Status.OVER_BUDGET
            assert (client.spent.lost, client.spent.money, client.spent.unsure_money) == (2, 0, 308)
        assert len(server.asked) == 2


def test_a_budget_of_tokens() -> None:
    with fake_server() as server, endpoint(server.url, budget={"tokens": 170}, concurrency=1) as client:
        statuses = [answer.status for answer in client.ask(questions(4))]
        # The most: 146 tokens, with 0 and 15 spent before it; not with 30.
        assert statuses == ["ok", "ok", "over_budget", "over_budget"]


def test_a_budget_needs_max_tokens_and_a_price() -> None:
    with fake_server() as server, endpoint(server.url, budget={"tokens": 100}) as client:
        with pytest.raises(ConfigError, match="max_tokens"):
            client.ask([Request(messages=(Message("user", "?"),))])
    with pytest.raises(ConfigError, match="price"):
        parse({"url": "http://a/v1", "model": "m", "budget": {"money": 3}}, EndpointSettings, where="recipe.yaml")


def test_the_key_comes_from_the_environment_and_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-secret-1234")
    caplog.set_level("DEBUG")

    def behave(body: Json, nth: int) -> Reply:
        if nth == 0:
            return Reply(choices("you sent sk-secret-1234"))
        return Reply({"error": {"message": "Incorrect API key provided: sk-secret-1234"}}, 401)

    with fake_server(behave) as server:
        with endpoint(server.url, tmp_path / "a.sqlite", api_key_env="TEST_KEY", concurrency=1) as client:
            answers = client.ask(questions(3))
        assert server.asked[0].headers["Authorization"] == "Bearer sk-secret-1234"
        assert len(server.asked) == 2
    assert answers[0].text == "you sent [API key]"
    assert answers[1].reason == "HTTP 401: Incorrect API key provided: [API key]"
    assert "secret" not in caplog.text
    assert "secret" not in "\n".join(sqlite3.connect(tmp_path / "a.sqlite").iterdump())
    assert "secret" not in repr(client.settings)


def test_a_local_server_s_dummy_key_is_a_word_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "EMPTY")
    with fake_server(lambda body, nth: Reply(choices("The set is EMPTY."))) as server:
        with endpoint(server.url, api_key_env="TEST_KEY") as client:
            assert client.ask(questions(1))[0].text == "The set is EMPTY."


def test_a_missing_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        endpoint("http://localhost:1/v1", api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "localhost:8000/v1"},
        {"url": "https://user:sk-12345@host/v1"},
        {"url": "https://host/v1?key=sk-12345"},
        {"api_key_env": "sk-12345"},
        {"concurrency": 0},
        {"modle": "m"},
    ],
)
def test_settings_that_cannot_be(wrong: Json) -> None:
    with pytest.raises(ConfigError) as error:
        parse({"url": "http://a/v1", "model": "m"} | wrong, EndpointSettings, where="recipe.yaml")
    assert next(iter(wrong)) in str(error.value)
    assert "sk-12345" not in str(error.value)
    with pytest.raises(ValidationError):
        EndpointSettings.model_validate({"url": "http://a/v1", "model": "m"} | wrong)


def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("a diary, and not a data base" * 100)
    with pytest.raises(DataError, match="Move it away"):
        endpoint("http://localhost:1/v1", tmp_path / "a.sqlite")
    assert (tmp_path / "a.sqlite").read_text().startswith("a diary")


def test_requests_are_drawn_as_they_are_needed() -> None:
    drawn = 0

    def many() -> Any:
        nonlocal drawn
        for drawn in range(1_000_000):
            yield Request(messages=(Message("user", str(drawn)),), max_tokens=1)

    with fake_server() as server, endpoint(server.url) as client:
        started = time.monotonic()
        for _ in zip(range(5), client.each(many()), strict=False):
            pass
        assert drawn < 60
        assert time.monotonic() - started < 20
