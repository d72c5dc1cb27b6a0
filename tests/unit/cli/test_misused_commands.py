"""Words that the command line cannot make sense of: one line, what was got and the next step, exit 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("serve", "m", "--prot", "8000"), "No such option: --prot (Possible options: --host, --port)"),
        (("serve", "m", "--port", "many"), "Invalid value for '--port': Input should be a valid integer"),
        (("serve", "m", "--port", "70000"), "less than or equal to 65535, got 70000. See consilience serve --help."),
        (("serve", "m", "--chunk", "-1"), "'--chunk': Input should be greater than or equal to 0, got -1. See"),
        (("serve",), "Missing argument 'model'"),
        (("serve", "m", "--grace", "-1"), "--grace is -1; expected seconds"),
        (("serve", "m", "--grace", "inf"), "--grace is inf; expected seconds"),
        (("serve", "m", "--width", "8", "--chunk", "2"), "--width and --chunk are of a search. Give --guide"),
        (("search", "--out", "r.jsonl", "--batch", "0"), "greater than or equal to 1, got 0. See consilience search"),
        (("search", "--model", "m"), "Missing option '--out'"),
        (("fuze",), "No such command 'fuze'"),
        (("annotate", "runn"), "No such command 'runn'"),
        (("compare", "--level", "high"), "'--level'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_line_and_the_next_step(consilience: Callable[..., Any], words: tuple[str, ...], says: str) -> None:
    answer = consilience(*words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("consilience: ")
    assert answer.err.count("\n") == 1
    assert says in answer.err


def test_a_key_in_the_place_of_its_variable_s_name_is_not_repeated(consilience: Callable[..., Any]) -> None:
    answer = consilience("serve", "m", "--api-key-env", "sk-very-secret")
    assert answer.code == 2
    assert "the name of an environment variable" in answer.err
    assert "secret" not in answer.err


def test_no_words_are_a_wish_for_help(consilience: Callable[..., Any]) -> None:
    answer = consilience()
    assert (answer.code, answer.err) == (2, "")
    assert "serve" in answer.out


def test_the_version(consilience: Callable[..., Any]) -> None:
    answer = consilience("--version")
    assert answer.code == 0
    assert answer.out.startswith("consilience ")
