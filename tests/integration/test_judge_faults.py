"""A judge behind a server that misbehaves, in a process that is killed, ends where an undisturbed one ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from consilience.records import Judgment, VerdictState, read_judgments
from fake_endpoint import Json, Reply, choices, fake_server

CHILD = """
import sys
from pathlib import Path
from consilience.judge import JudgeSettings, open_judge
from consilience.records import row_of_judgment, write_jsonl

url, cache, out = sys.argv[1:]
endpoint = {"url": url, "model": "m", "concurrency": 4, "retries": 20, "backoff_s": 0.01, "longest_wait_s": 0.1}
settings = JudgeSettings.model_validate({"kind": "pair", "endpoint": endpoint})
numbers = range(20)
with open_judge(settings, cache=Path(cache)) as judge:
    judgments = judge.compares()(
        [f"question {i}" for i in numbers],
        [f"reply good {i}" for i in numbers],
        [f"reply bad {i}" if i % 5 else None for i in numbers],
        on_progress=lambda done, total: print(done, flush=True),
    )
write_jsonl(Path(out), map(row_of_judgment, judgments))
"""
FAULTS = [
    Reply(b"", 429, {"Retry-After": "0.02"}),
    Reply(b"", 500),
    Reply(b'{"choices": [{"ind'),
    Reply(reset=True),
    Reply(choices("[[A]]"), cut_at=30),
]


def judge(body: Json, nth: int) -> Reply:
    """Prefers the good reply; one question gets no verdict, one is refused; every third request meets a fault."""
    text = body["messages"][-1]["content"]
    if nth % 3 == 0:
        return FAULTS[nth // 3 % len(FAULTS)]._replace(delay_s=0.01)
    if "question 7\n" in text:
        return Reply(choices("Hard to say.", finish="length"), delay_s=0.01)
    if "question 8\n" in text:
        return Reply(choices("", finish="content_filter"), delay_s=0.01)
    return Reply(choices("[[A]]" if text.index("good") < text.index("bad") else "[[B]]"), delay_s=0.01)


def child(url: str, folder: Path) -> subprocess.Popen[str]:
    words = [url, str(folder / "answers.sqlite"), str(folder / "judgments.jsonl")]
    return subprocess.Popen([sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, text=True)


def finished(url: str, folder: Path) -> list[Judgment]:
    process = child(url, folder)
    process.communicate(timeout=120)
    assert process.returncode == 0
    return read_judgments(folder / "judgments.jsonl")


def test_a_killed_judge_ends_where_an_undisturbed_one_ends(tmp_path: Path) -> None:
    with fake_server(judge) as server:
        process = child(server.url, tmp_path)
        assert process.stdout is not None
        [process.stdout.readline() for _ in range(11)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = Counter(asked.body["messages"][-1]["content"] for asked in server.asked)
        assert len(before) < 32
        found = finished(server.url, tmp_path)
        total = len(server.asked)
        (tmp_path / "other").mkdir()
        undisturbed = finished(server.url, tmp_path / "other")
        assert finished(server.url, tmp_path) == found
        # The third run asked nothing: all that the server saw since is the undisturbed one.
        asked = Counter(asked.body["messages"][-1]["content"] for asked in server.asked[total:])
    assert found == undisturbed
    assert len(asked) == 32
    states = Counter(judgment.state for judgment in found)
    assert states == {"ok": 14, "missing": 4, "unparsed": 1, "refused": 1}
    assert [judgment.value for judgment in found if judgment.state == VerdictState.OK] == [1.0] * 14
    assert all(judgment.consistent for judgment in found if judgment.state == VerdictState.OK)
