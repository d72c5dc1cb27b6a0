"""A project with a corpus whose model labels are words that occur nowhere else, and a running coding page."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CODEBOOK = """
variable: mood
question: Which mood does the writer show?
unit: note
labels:
  - name: glad
    code: 1
    definition: Joy, praise or thanks.
    examples: ["Thank you all, best day!"]
    counter_examples: [{text: "A comedy is on.", label: sad, why: "<b>a topic</b>"}]
  - name: sad
    code: 2
    definition: Grief, worry & complaint.
unclear: Take the stronger one.
"""
MODEL_LABELS = ("QUELLE", "ZUNFT")
TEXTS = (
    "Note {0}: the sun is out and so are we.",
    "Note {0}: <script>document.title = 'taken'</script> & <b>bold</b>",
    "Note {0}: the train is late again 😀 and the platform cold.",
)


def make_project(folder: Path, rows: int = 40, codebook: str = CODEBOOK) -> Path:
    """`folder` with codebook.yaml and notes.csv (id, text, model, sure, author)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "codebook.yaml").write_text(codebook)
    with (folder / "notes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "model", "sure", "author"])
        for i in range(rows):
            text = TEXTS[i % len(TEXTS)].format(i)
            writer.writerow([f"n{i}", text, MODEL_LABELS[i % 4 == 0], (i % 10) / 10, f"author {i % 8}"])
    return folder


def plan_words(project: Path, *more: object) -> list[object]:
    """The words of `gold plan` for that corpus, stratified by the model's label."""
    return ["gold", "plan", project, "--corpus", project / "notes.csv", "--id", "id", "--stratify", "model", *more]


class Page(NamedTuple):
    """A running page: its address with the token, and without."""

    url: str

    @property
    def origin(self) -> str:
        return self.url.partition("/#")[0]

    @property
    def port(self) -> int:
        return int(self.origin.rpartition(":")[2])


@contextmanager
def page_in_a_thread(project: Path) -> Iterator[Page]:
    """The coding page served from this process: a second less than a process of its own."""
    from consilience.annotate.codebook import read_codebook
    from consilience.serve.coding import coding_page

    page = coding_page(project, read_codebook(project / "codebook.yaml"))
    thread = threading.Thread(target=page.server.run, kwargs={"sockets": [page.socket]})
    thread.start()
    try:
        yield Page(page.urls[0])
    finally:
        page.server.should_exit = page.server.force_exit = True
        thread.join()


@contextmanager
def page_in_a_process(project: Path, port: int = 0) -> Iterator[tuple[Page, subprocess.Popen[str]]]:
    """`consilience gold code` as a user starts it."""
    words = ["gold", "code", str(project), "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "consilience.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield Page(process.stdout.readline().strip()), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stored(project: Path, coder: str) -> dict[str, Any]:
    """What a coder says now, by text: label, or status where there is none."""
    from consilience.annotate.coding.store import GoldStore

    with GoldStore(project / "gold.sqlite") as store:
        return {
            item: coding.value or coding.status
            for item, codings in store.codings().items()
            for coding in codings
            if coding.coder == coder and coding.role == "coder"
        }


def design_words(project: Path) -> set[str]:
    """Every word of the design that a coder must not see: strata and probabilities."""
    from consilience.annotate.coding.store import GoldStore

    with GoldStore(project / "gold.sqlite") as store:
        texts = store.texts()
    return {json.dumps(text.probability) for text in texts} | {*MODEL_LABELS}
