"""The codebook: what is coded, on which level of measurement, and what each label means.

One YAML file is the source of what human coders read (`as_markdown`) and of what models are told (`definitions`); its
`digest` goes into everything that was made with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from consilience.config import Settings, load_recipe
from consilience.errors import ConfigError, DataError, nearest

MOST_NUMBERS = 201  # of an interval variable, whose probabilities are still told one by one: 0 to 200
JOINT = "|"  # between the labels of one text, in a table's cell


class Level(StrEnum):
    """The level of measurement: it decides the answers, the agreement measures and the estimates."""

    NOMINAL = "nominal"
    ORDINAL = "ordinal"
    MULTI_LABEL = "multi-label"
    INTERVAL = "interval"
    SPAN = "span"
    FREE_TEXT = "free text"


CLOSED = (Level.NOMINAL, Level.ORDINAL)  # exactly one label to a text


class Example(Settings):
    """A text that a label applies to, and why."""

    text: str
    why: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_plain_text(cls, given: Any) -> Any:
        return {"text": given} if isinstance(given, str) else given


class CounterExample(Example):
    """A text that looks as if the label applied; `label` is the right one."""

    label: str = ""


class Label(Settings):
    """One label. `code` is its number in SPSS or Stata files, where gold labels may be given by it too."""

    name: str
    definition: str = ""
    examples: tuple[Example, ...] = ()
    counter_examples: tuple[CounterExample, ...] = ()
    code: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return given if isinstance(given, dict) else {"name": given}

    @field_validator("name", mode="before")
    @classmethod
    def _a_word(cls, name: Any) -> Any:
        if isinstance(name, bool):
            raise ConfigError(f'a label is {name}: YAML reads a bare yes or no as that; write it in quotes, "yes".')
        name = str(name) if isinstance(name, int | float) else name
        if isinstance(name, str) and (not name.strip() or name != name.strip() or JOINT in name or "\n" in name):
            raise ConfigError(f"the label {name!r} is empty, or holds blanks at its ends, a line break or {JOINT!r}.")
        return name


class Codebook(Settings):
    """What is coded and how. `unclear` says what a coder does with a text that the definitions do not decide.

    An ordinal variable's labels stand in order, lowest first. An interval variable has a `range` instead of labels.
    """

    variable: str
    question: str
    level: Level = Level.NOMINAL
    unit: str = "text"
    labels: tuple[Label, ...] = ()
    unclear: str = ""
    range: tuple[float, float] | None = None

    @field_validator("variable")
    @classmethod
    def _a_column_name(cls, variable: str) -> str:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,31}", variable):
            raise ConfigError(
                f"the variable {variable!r} becomes a column, in SPSS and Stata too: "
                "expected up to 32 letters, digits and underscores, beginning with a letter."
            )
        return variable

    @model_validator(mode="after")
    def _fits_its_level(self) -> Codebook:
        least = {Level.NOMINAL: 2, Level.ORDINAL: 2, Level.MULTI_LABEL: 1}.get(self.level, 0)
        if len(self.labels) < least:
            raise ConfigError(f"a {self.level} variable has at least {least} labels, got {len(self.labels)}.")
        if self.labels and self.level in (Level.INTERVAL, Level.FREE_TEXT):
            raise ConfigError(f"a variable of level {self.level} has no labels; leave them out.")
        if (self.range is not None) != (self.level is Level.INTERVAL):
            raise ConfigError("range: [lowest, highest] belongs to a variable of level interval, and to no other.")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ConfigError(f"range is {list(self.range)}; expected [lowest, highest].")
        self._labels_apart()
        return self

    def _labels_apart(self) -> None:
        seen: dict[str, str] = {}
        for name in self.names:
            key = re.sub(r"[\W_]+", " ", name.casefold()).strip() or name
            if key in seen:
                how = "twice" if seen[key] == name else f"and {name!r}, which differ in case or punctuation only"
                raise ConfigError(f"the codebook has the label {seen[key]!r} {how}; labels must be told apart.")
            seen[key] = name
        codes = [label.code for label in self.labels if label.code is not None]
        if codes and (len(set(codes)) != len(codes) or len(codes) != len(self.labels)):
            raise ConfigError(f"the codes of the {len(self.labels)} labels are {codes}; give each its own, or none.")
        if clash := [label for label in self.labels if label.code is not None and self._is_other_name(label)]:
            raise ConfigError(f"the code {clash[0].code} of label {clash[0].name!r} is the name of another label.")
        defined: dict[str, str] = {}
        for label in self.labels:
            same = " ".join(label.definition.split()).casefold()
            if same and defined.setdefault(same, label.name) != label.name:
                raise ConfigError(
                    f"{defined[same]!r} and {label.name!r} have one and the same definition: the labels overlap. "
                    "Say in it which texts are of the one and which of the other."
                )
        shown: dict[str, str] = {}
        for label in self.labels:
            for example in label.examples:
                other = shown.setdefault(example.text.strip(), label.name)
                if other != label.name and self.level in CLOSED:
                    raise ConfigError(
                        f"the example {example.text[:60]!r} stands under {other!r} and under {label.name!r}: "
                        "the labels overlap. Say in their definitions which one it is."
                    )
            for twice in {example.text.strip() for example in label.examples} & {
                wrong.text.strip() for wrong in label.counter_examples
            }:
                raise ConfigError(
                    f"{twice[:60]!r} is an example and a counter-example of {label.name!r}. Take one out."
                )
            for wrong in label.counter_examples:
                if wrong.label and wrong.label not in self.names:
                    raise ConfigError(f"a counter-example of {label.name!r} is said to be {wrong.label!r}, no label.")

    def _is_other_name(self, label: Label) -> bool:
        return any(other.name == str(label.code) for other in self.labels if other is not label)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels' names, in the codebook's order."""
        return tuple(label.name for label in self.labels)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The whole numbers of an interval variable's range, where they are not too many to be told one by one."""
        if self.range is None:
            return ()
        low, high = math.ceil(self.range[0]), math.floor(self.range[1])
        return tuple(str(number) for number in range(low, high + 1)) if high - low < MOST_NUMBERS else ()

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with anything in the codebook."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def example_texts(self) -> frozenset[str]:
        """Every text that the codebook shows as an example: none of them may serve as gold."""
        examples = [shown for label in self.labels for shown in (*label.examples, *label.counter_examples)]
        return frozenset(shown.text.strip() for shown in examples)

    def canonical(self, value: str) -> str:
        """A coder's value as the codebook writes it: a label by name (in any case) or by code, a number within range.

        Several labels of a multi-label variable are joined by `|`, in the codebook's order; none is `""`. Raises
        `DataError` at a value that the codebook does not have.
        """
        text = value.strip()
        if self.level is Level.INTERVAL:
            return self._number(text)
        if self.level is Level.MULTI_LABEL:
            chosen = {self._name(part.strip()) for part in text.split(JOINT) if part.strip()}
            return JOINT.join(name for name in self.names if name in chosen)
        return self._name(text) if self.level in CLOSED else text

    def _name(self, text: str) -> str:
        for label in self.labels:
            code = "" if label.code is None else str(label.code)
            if text == label.name or text.casefold() == label.name.casefold() or (code and _whole(text) == code):
                return label.name
        there_are = ", ".join(self.names)
        raise DataError(f"{text!r} is no label of the codebook.{nearest(text, self.names)} There are: {there_are}.")

    def _number(self, text: str) -> str:
        low, high = self.range or (0.0, 0.0)
        try:
            number = float(text)
        except ValueError:
            raise DataError(f"{text!r} is no number; {self.variable} goes from {low:g} to {high:g}.") from None
        if not low <= number <= high:
            raise DataError(f"{text} is outside the range of {self.variable}, {low:g} to {high:g}.")
        return f"{number:g}"

    def definitions(self, order: Sequence[int] | None = None, marks: Sequence[str] | None = None) -> str:
        """The labels with definitions, examples and counter-examples, as models are told; in `order`, if given.

        `marks` are put in front of the labels, in the order shown: option letters.
        """
        places = range(len(self.labels)) if order is None else order
        signs = [f"{mark}) " for mark in marks] if marks else ["- "] * len(self.labels)
        return "\n".join(
            sign + "\n  ".join(_label_lines(self.labels[place], self.unit)) for sign, place in zip(signs, places)
        )

    def as_markdown(self) -> str:
        """The codebook as coders read it."""
        parts = [f"# {self.variable}", self.question, f"Level: {self.level}. Coded for every {self.unit}."]
        if self.range:
            parts.append(f"A number from {self.range[0]:g} to {self.range[1]:g}.")
        for label in self.labels:
            head = f"## {label.name}" + ("" if label.code is None else f" ({label.code})")
            first, *rest = _label_lines(label, self.unit)
            definition = first.removeprefix(label.name).removeprefix(": ")
            parts += [head, *([definition] if definition else []), "\n".join(f"- {line}" for line in rest)]
        if self.unclear:
            parts += ["## When it is unclear", self.unclear]
        return "\n\n".join(part for part in parts if part) + "\n"


def read_codebook(path: Path) -> Codebook:
    """The codebook in the YAML file at `path`. Raises `ConfigError` naming what is wrong in it."""
    return load_recipe(path, Codebook)


def _label_lines(label: Label, unit: str) -> list[str]:
    lines = [f"{label.name}: {label.definition}" if label.definition else label.name]
    for example in label.examples:
        lines.append(f'Such a {unit}: "{example.text}"' + (f" ({example.why})" if example.why else ""))
    for wrong in label.counter_examples:
        right = f"that is {wrong.label}" if wrong.label else "it is not"
        lines.append(f'Not: "{wrong.text}" ({right}{": " + wrong.why if wrong.why else ""})')
    return lines


def _whole(text: str) -> str:
    """`1.0`, as spreadsheets write a code, as `1`."""
    return re.sub(r"\.0+$", "", text)
