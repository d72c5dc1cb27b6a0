"""A sample that was drawn elsewhere becomes the gold sample: its texts, and the probabilities that they had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.annotate.codebook import CLOSED, Codebook
from consilience.annotate.coding.plan import Corpus, corpus_rows, refuse_other_gold
from consilience.annotate.coding.sampling import PARTS, Frame, Size, draw
from consilience.annotate.coding.store import STORE, GoldStore, GoldText
from consilience.annotate.tables import place_of, read_table, text_of
from consilience.errors import ConfigError, DataError, nearest
from consilience.rng import stream
from consilience.run import fingerprint


def adopt_sample(
    project: Path,
    codebook: Codebook,
    corpus: Corpus,
    sample: Path,
    *,
    id_column: str = "id",
    probability_column: str | None = None,
    development: float = 0.25,
    twice: float = 0.25,
    coders: int = 2,
    seed: int = 0,
    never: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Makes the rows of `sample`, a table of the corpus's identifiers, the gold sample of `project`.

    Each had the probability in `probability_column`; without one, the rows are taken for a simple random sample of
    the corpus's texts. What is development and what is coded twice is drawn at random among them. Raises `DataError`
    naming the row of an unknown, doubled or empty text, of one that is `never` gold, and of a probability that is
    none; `ConfigError` where there are fewer texts than labels or a sample is there already.
    """
    path = project / STORE
    if path.exists():
        raise ConfigError(f"{path} is there already. A sample from elsewhere begins a project; take another folder.")
    refuse_other_gold(project)
    texts: dict[str, tuple[str, str]] = {}
    for item, text, cells in corpus_rows(corpus, corpus.cluster):
        texts[item] = (text, text_of(cells[0]) if corpus.cluster else "")
    table = read_table(sample, corpus.encoding)
    id_at = place_of(table.columns, id_column, sample, "--id")
    probability_at = (
        place_of(table.columns, probability_column, sample, "--probability") if probability_column else None
    )
    drawable = sum(bool(text.strip()) and " ".join(text.split()) not in (never or {}) for text, _ in texts.values())
    chosen: dict[str, float] = {}
    for number, row in enumerate(table.rows, start=1):
        item, where = text_of(row[id_at]).strip(), f"{sample}, row {number}"
        if item not in texts:
            raise DataError(f"{where}: {item!r} is not in {corpus.path}.{nearest(item, texts)}")
        if item in chosen:
            raise DataError(f"{where}: {item!r} a second time.")
        text = texts[item][0]
        if not text.strip():
            raise DataError(f"{where}: the text of {item!r} is empty.")
        if shown_in := (never or {}).get(" ".join(text.split())):
            raise DataError(f"{where}: models are shown {item!r} as an example ({shown_in}); it cannot be gold.")
        chosen[item] = 0.0 if probability_at is None else _probability(row[probability_at], where)
    if probability_at is None:
        chosen = dict.fromkeys(chosen, len(chosen) / drawable)
    labels = len(codebook.labels) if codebook.level in CLOSED else 1
    if len(chosen) < labels:
        raise ConfigError(f"{len(chosen)} gold texts for {labels} labels: fewer than one to each.")
    order = stream(seed, "gold", "adopted").permutation(len(chosen))
    size = Size(drawn=len(chosen), dev=round(development * len(chosen)))
    frame = Frame(units_N=list(chosen), stratum_of=dict.fromkeys(chosen, ""))
    drawn = draw(frame, {"": size}, unit_order=order, text_order=range(len(chosen)), twice=twice)
    items = list(chosen)
    gold = [
        GoldText(
            item=items[text.place],
            text=texts[items[text.place]][0],
            wanted=coders if text.twice else 1,
            stratum="",
            cluster=texts[items[text.place]][1],
            part=text.part,
            probability=chosen[items[text.place]],
            part_probability=chosen[items[text.place]] * text.part_probability,
        )
        for text in drawn
    ]
    about = {
        "corpus": {"path": str(corpus.path), "fingerprint": fingerprint(corpus.path)},
        "design": {"adopted": str(sample), "fingerprint": fingerprint(sample), "probability": probability_column},
        "codebook": {"digest": codebook.digest, "variable": codebook.variable, "level": str(codebook.level)},
    }
    shuffle = stream(seed, "gold", "coding order").permutation(len(gold))
    with GoldStore.create(path, about, [gold[place] for place in shuffle]):
        pass
    return {
        "store": str(path),
        "texts": len(gold),
        "corpus": drawable,
        **{part: sum(text.part == part for text in gold) for part in PARTS},
        "twice": sum(text.wanted > 1 for text in gold),
        "assumed": None if probability_column else f"a simple random sample of {drawable} texts",
    }


def _probability(cell: Any, where: str) -> float:
    try:
        probability = float(text_of(cell))
    except ValueError:
        probability = -1.0
    if not 0 < probability <= 1:
        raise DataError(f"{where}: the probability is {text_of(cell)!r}; expected a number above 0 and up to 1.")
    return probability
