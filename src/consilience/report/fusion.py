"""The report of a fusion run: estimates, alignment, training, answers, data and recipe on one quiet page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from markupsafe import Markup

from consilience.report import numbers
from consilience.report.figures import SERIES, ForestRow, curves, forest_plot
from consilience.report.numbers import estimates_in, with_interval
from consilience.report.page import environment, write_page

ROLES = {"pivot": "pivot", "source": "sources", "control": "controls", "target": "targets", "merge": "merges"}
OPTIONAL = ("note", "baseline", "alignment", "samples", "training", "seconds", "versions", "caveats")
Model = Mapping[str, Any]


def write_fusion_report(results: Mapping[str, Any], path: Path) -> None:
    """One self-contained HTML file at `path`: no script, no font, no picture and no style from elsewhere.

    `results` has `title`, `made`, `run`, `recipe`, `result`, `pivot`, `data` and `models`. May be absent or empty:
    `note`, `baseline`, `alignment`, `samples`, `training`, `seconds`, `versions` and `caveats`; a model's accuracy
    and `outcomes`; a sample's `expected`; a source's `teacher_share`, `mapped_mass` and `kept_mass`. Estimates are
    as `Estimate.to_json` gives them. All text is escaped.
    """
    whole: dict[str, Any] = {**dict.fromkeys(OPTIONAL), **results}
    models = in_role_order(whole["models"])
    sources = (whole["alignment"] or {}).values()
    page = (
        environment()
        .get_template("fusion.html.j2")
        .render(
            results=whole,
            models=models,
            roles=ROLES,
            sentences=headline(whole),
            forests=forests(whole),
            tables=tables(models),
            series=SERIES,
            outcomes=outcomes(models),
            vocabulary_kinds=_keys(found["vocabulary"] for found in sources),
            teacher_groups=_keys(found.get("teacher_share") for found in sources),
            curves=curves(whole["training"] or {}),
            methods=methods(whole),
            decimals=numbers.decimals_of,
            chunks=chunks,
        )
    )
    write_page(page, path)


def in_role_order(models: Mapping[str, Model]) -> dict[str, Model]:
    """The models by role, pivot first; within a role in the order given."""
    order = list(ROLES)
    return dict(sorted(models.items(), key=lambda item: order.index(item[1]["role"])))


def references(results: Mapping[str, Any]) -> list[str]:
    """What the models are compared with: the baseline if there is one, and the pivot."""
    baseline, pivot = results.get("baseline"), results["pivot"]
    return [baseline, pivot] if baseline and baseline != pivot else [pivot]


CALLED = {
    "pivot": "the pivot",
    "sft": "plain fine-tuning (sft)",
    "seqkd": "sequence-level distillation (seqkd)",
}


def headline(results: Mapping[str, Any]) -> list[str]:
    """What the fused result is, and what was measured of it, one sentence per quantity, against every control."""
    name = results["result"]
    model = results["models"][name]
    others = dict.fromkeys([*references(results), *model["differences"]])
    shown = [other for other in others if other in model["differences"]]
    sentences = [f"The result is {name}: {model['about']}."]
    if model.get("accuracy"):
        found = model["accuracy"]
        measured = f"Accuracy {with_interval(found)} over {found['n']:,} {found['units']}"
        sentences.append(f"{measured}{_minus(shown, model, 'accuracy')}.")
    found = model["nll"]
    measured = f"Held-out replies cost {with_interval(found)} nats per byte over {found['n']:,} {found['units']}"
    sentences.append(f"{measured}{_minus(shown, model, 'nll')}. Lower is better.")
    return sentences


def _minus(others: Sequence[str], model: Model, quantity: str) -> str:
    found = [(other, model["differences"][other].get(quantity)) for other in others]
    parts = [
        f"minus {CALLED.get(other, other)}: {with_interval(estimate, signed=True)}"
        for other, estimate in found
        if estimate
    ]
    return "; " + "; ".join(parts) if parts else ""


def forests(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """`(reference, figure)`: every model's differences to the pivot, and to the baseline if there is one."""
    models = in_role_order(results["models"])
    quantities = {"accuracy": "accuracy (higher is better)", "nll": "nats per byte (lower is better)"}
    found = []
    for other in references(results):
        differences = {
            name: model["differences"][other] for name, model in models.items() if other in model["differences"]
        }
        shown = [key for key in quantities if any(of_model.get(key) for of_model in differences.values())]
        rows = [
            ForestRow(
                label=name,
                group=ROLES[models[name]["role"]],
                estimates=[of_model.get(key) for key in shown],
                remark="the result" if name == results["result"] else "",
                in_focus=models[name]["role"] != "source",  # a source is far from the pivot on what it does not know
            )
            for name, of_model in differences.items()
        ]
        if rows and shown:
            panels = [quantities[key] for key in shown]
            found.append((other, forest_plot(rows, panels, name=f"Differences of every model to {other}")))
    return found


def tables(models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """The tables of accuracy by task and of NLL by group: their columns, and a row of estimates per model."""
    kinds = (("accuracy-by-task", "Accuracy by task", "accuracy", "accuracy_by_task"),
             ("nll-by-group", "NLL by group", "nll", "nll_by_group"))  # fmt: skip
    found = []
    for anchor, title, whole, part in kinds:
        columns = _keys(model.get(part) for model in models.values())
        rows = {
            name: [model.get(whole), *((model.get(part) or {}).get(column) for column in columns)]
            for name, model in models.items()
            if model.get(part)
        }
        if rows:
            digits = numbers.decimals_of(estimate for row in rows.values() for estimate in row)
            found.append({"anchor": anchor, "title": title, "columns": columns, "rows": rows, "decimals": digits})
    return found


def outcomes(models: Mapping[str, Model]) -> dict[str, Any]:
    """What became of the questions under each model, counted over the tasks: correct, wrong, unreadable ..."""
    counts: dict[str, Counter[str]] = {}
    for name, model in models.items():
        for by_outcome in (model.get("outcomes") or {}).values():
            counts.setdefault(name, Counter()).update(by_outcome)
    return {"kinds": _keys(counts.values()), "of": counts}


def _keys(mappings: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """The keys of all `mappings`, each once, in order of appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping or {}))


Box = tuple[str, bool]  # a token's text, and whether a token of the other side covers the same bytes


def chunks(pivot: Sequence[Box], source: Sequence[Box]) -> list[tuple[list[Box], list[Box]]]:
    """Two tokenizations of a text cut wherever both end a token, so that what speaks of the same bytes stands together.

    Where the texts differ (a token may hold half a character), what remains is one chunk.
    """
    ends = [list(accumulate(len(text) for text, _ in boxes)) for boxes in (pivot, source)]
    texts = ["".join(text for text, _ in boxes) for boxes in (pivot, source)]
    agree = next((i for i, (ours, theirs) in enumerate(zip(*texts)) if ours != theirs), min(map(len, texts)))
    cuts = [end for end in sorted(set(ends[0]) & set(ends[1])) if end <= agree]
    found = []
    starts = [0, 0]
    for cut in cuts:
        stops = [end.index(cut) + 1 for end in ends]
        found.append((list(pivot[starts[0] : stops[0]]), list(source[starts[1] : stops[1]])))
        starts = stops
    rest = (list(pivot[starts[0] :]), list(source[starts[1] :]))
    return [*found, rest] if any(rest) else found


def methods(results: Mapping[str, Any]) -> list[str]:
    """Every interval's method in `results`, with its level and units: `95 %, questions: mean, Student t`."""
    texts = (
        f"{100 * found['level']:g} %, {found['units']}: {found['method']}" for found in estimates_in(results["models"])
    )
    return sorted(dict.fromkeys(texts))
