"""What `consilience annotate` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consilience.cli.tables import columns, shown


def dev_table(results: Mapping[str, Any]) -> str:
    """Every configuration: agreement with people, no label, speed; the first one's confusions are in the file."""
    configurations = results["configurations"]
    measures = list(
        dict.fromkeys(
            name
            for found in configurations.values()
            for name in found["validation"]["agreement"]
            if ", " not in name  # of one label out of several: in the file
        )
    )
    head = ["configuration", *measures, "macro-F1", "no label", "mass on labels", "texts/s"]
    rows = [head]
    for name, found in configurations.items():
        validation = found["validation"]
        without = sum(count for status, count in validation["statuses"].items() if status != "ok")
        rows.append(
            [
                name,
                *(shown(validation["agreement"].get(measure)) for measure in measures),
                shown(validation.get("table", {}).get("macro_f1")),
                f"{without}",
                "" if found["mean_mass"] is None else f"{found['mean_mass']:.3f}",
                "" if found["texts_per_second"] is None else f"{found['texts_per_second']:.1f}",
            ]
        )
    notes = [
        f"{name}: {note}"
        for name, found in configurations.items()
        for note in (found["note"], found["validation"]["note"])
        if note
    ]
    foot = [
        f"[ ]: 95 % intervals over {results['items']} development texts. Chosen on them, a configuration looks better "
        "there than it is:",
        "what is reported later comes from other gold texts. Errors and confusions: dev/results.json.",
    ]
    return columns(rows) + "\n\n" + "\n".join([*notes, *foot])


def run_table(results: Mapping[str, Any], retry: str, *, retried: bool) -> str:
    """What became of the rows under every frozen configuration; `retry` is the command that codes errors again."""
    blocks = []
    for name, found in results["configurations"].items():
        rows = [("configuration", name)]
        rows += [(f"  {label}", f"{count}") for label, count in found["labels"].items()]
        rows += [(f"  ({status})", f"{count}") for status, count in found["statuses"].items() if status != "ok"]
        if found["flagged"]:
            rows.append(("  texts that give orders to a model", f"{found['flagged']}"))
        if found["mean_mass"] is not None:
            rows.append(("  mean mass on the labels", f"{found['mean_mass']:.3f}"))
        if found["mass_below_half"]:
            rows.append(("  texts to which the model would rather say something else", f"{found['mass_below_half']}"))
        blocks.append(columns(rows))
    errors = sum(found["statuses"].get("error", 0) for found in results["configurations"].values())
    if retried and not errors and not results["coded_again"]:
        blocks.append("No coding ended in an error: there is nothing to code again.")
    elif retried:
        blocks.append(f"{results['coded_again']} texts were coded again.")
    if errors:
        blocks.append(f"{errors} codings ended in an error and have no label; to code these again:\n{retry}")
    return "\n\n".join(blocks) + f"\n\nrows    {results['rows']}\ntable   {results['table']}"


def estimate_table(found: Mapping[str, Any], by: str | None, formula: str | None) -> str:
    """Prevalence in four ways, and what was asked for: groups, a regression."""
    blocks = [
        f"{found['gold']} gold texts of {found['rows']:,}, configuration {found['configuration']}",
        _ways(found["prevalence"]),
        "\n".join(found["sentences"]),
        "\n".join(found["without_label"]["sentences"]),
    ]
    if by:
        blocks += _groups(found["by"][by])
    if formula:
        blocks.append(_regression(found["formulas"][formula]))
    blocks.append("[ ]: 95 % intervals. Not in them: " + "; ".join(found["not_included"]) + ".")
    return "\n\n".join(block for block in blocks if block)


def _ways(numbers: Mapping[str, Any], signed: bool = False) -> str:
    ways = list(dict.fromkeys(way for found in numbers.values() for way, value in found.items() if _is_number(value)))
    rows = [["", *ways]]
    rows += [[name, *(shown(found.get(way), signed=signed) for way in ways)] for name, found in numbers.items()]
    return columns(rows) if numbers else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, Mapping) and "low" in value


def _groups(found: Mapping[str, Any]) -> list[str]:
    blocks = []
    for group, part in found["groups"].items():
        head = f"{found['column']} = {group}: {part['gold']} gold texts of {part['rows']:,}"
        blocks.append(head + ("\n" + _ways(part["prevalence"]) if part["prevalence"] else ": too few to estimate from"))
    for name, difference in found["differences"].items():
        blocks.append(f"difference {name}\n" + _ways(difference, signed=True))
    return blocks


def _regression(found: Mapping[str, Any]) -> str:
    head = f"{found['formula']}   ({found['family']}, {found['gold']} gold texts of {found['rows']:,} rows)"
    left = (
        [f"{found['rows_left_out']} rows have no value in a covariate and are left out"]
        if found["rows_left_out"]
        else []
    )
    if found["uncorrected_left_out"]:
        left.append(f"{found['uncorrected_left_out']} rows without a label are left out of the uncorrected column only")
    return "\n".join([head, _ways(found["coefficients"], signed=True), *left])
