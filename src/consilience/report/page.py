"""What all pages share: templates that escape every text, filters for numbers and tokens, one way to a file."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from consilience.report import numbers
from consilience.run import write_text


def environment() -> jinja2.Environment:
    """The templates of this folder with their filters; autoescape is on."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("consilience.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {
        "number": numbers.number,
        "interval": numbers.interval,
        "with_interval": numbers.with_interval,
        "duration": numbers.duration,
        "date": _date,
        "token": _token,
    }
    return made


def write_page(page: str, path: Path) -> None:
    """`page` at `path`, whole or not at all; half a surrogate pair, which is no text, becomes a question mark."""
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))


def _date(iso: str) -> str:
    """`14 March 2026, 09:26 UTC`."""
    at = datetime.fromisoformat(iso)
    return f"{at.day} {at:%B %Y, %H:%M} {at.tzname() or ''}".rstrip()


def _token(text: str) -> Markup:
    """The text of a token, escaped, with its spaces, tabs and line ends to be seen."""
    shown = escape(text)
    for blank, sign in {" ": "␣", "\t": "⇥", "\n": "↵"}.items():
        shown = shown.replace(blank, Markup("<i>{}</i>").format(sign))
    return shown
