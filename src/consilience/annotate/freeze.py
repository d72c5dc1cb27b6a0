"""Fixing what is run: the chosen configurations by hash, before the corpus is coded and the test gold looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from consilience.annotate.codebook import CLOSED
from consilience.annotate.configuration import correction_from_json, digest, identity, refuse_unanswerable
from consilience.annotate.corrections import Affine
from consilience.annotate.dev import read_dev
from consilience.annotate.recipe import Project
from consilience.config import flatten
from consilience.errors import ConfigError, pick
from consilience.run import versions, write_json

FROZEN = "frozen.json"


class Frozen(NamedTuple):
    """The fixed configurations, the first of which is the one that is reported; the others are the multiverse."""

    names: tuple[str, ...]
    record: dict[str, Any]

    @property
    def primary(self) -> str:
        return self.names[0]

    def correction(self, name: str) -> Affine | None:
        """The correction of a configuration's scores as it was fitted on the development sample."""
        return correction_from_json(self.record["configurations"][name]["correction"])


def freeze(project: Project, chosen: Sequence[str], *, force: bool = False) -> Frozen:
    """Fixes the configurations `chosen`, in this order, in PROJECT/frozen.json.

    Without a choice all are taken where there is one only. Raises `ConfigError` where it is frozen already, where a
    choice has to be made, and where a correction has not been fitted by `annotate dev`.
    """
    path = project.folder / FROZEN
    if path.exists() and not force:
        raise ConfigError(
            f"{path} is there already. Freezing again after a look at the test gold would tune on it; "
            "--force does it all the same, and starts the labels anew."
        )
    known = project.recipe.configurations
    if not chosen and len(known) > 1:
        raise ConfigError(f"choose what is run, first the one to report: --choose NAME. There are: {', '.join(known)}.")
    names = list(dict.fromkeys(chosen or known))
    for name in names:
        pick(known, name, "configuration")
    refuse_unanswerable(project, names)
    dev = read_dev(project)
    configurations = {name: _fixed(project, name, dev) for name in names}
    record = {
        "frozen": datetime.now(UTC).isoformat(timespec="seconds"),
        "names": names,
        "configurations": configurations,
        "tried": [*dev["configurations"]] if dev else [],
        "dev_gold": dev["ids"] if dev else [],  # as they were drawn then: the gold may have grown since
        "versions": versions(),
    }
    record["digest"] = digest([names, configurations])
    write_json(path, record)
    return Frozen(tuple(names), record)


def read_frozen(project: Project) -> Frozen:
    """What is frozen. Raises `ConfigError` where nothing is, and where recipe, codebook or a model changed since."""
    path = project.folder / FROZEN
    if not path.is_file():
        raise ConfigError(f"nothing is frozen in {project.folder}. Run consilience annotate freeze first.")
    record = json.loads(path.read_text(encoding="utf-8"))
    changes = []
    for name in record["names"]:
        if name not in project.recipe.configurations:
            changes.append(f"{name} is no longer in the recipe")
            continue
        was, now = flatten(record["configurations"][name]["identity"]), flatten(identity(project, name))
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                changes += _change(key, was.get(key), now.get(key))
    if changes:
        raise ConfigError(
            f"what was frozen on {record['frozen'][:10]} has changed: {'; '.join(dict.fromkeys(changes))}. Put it back "
            f"as it was, or freeze again (--force), which starts the labels anew."
        )
    return Frozen(tuple(record["names"]), record)


def _change(key: str, was: Any, now: Any) -> list[str]:
    """What changed, down to the place within a list such as the codebook's labels."""
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = [(f"{key}.{i}", old, new) for i, (old, new) in enumerate(zip(was, now)) if old != new]
        return [change for pair in pairs for change in _change(*pair)]
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [part for part in {**was, **now} if was.get(part) != now.get(part)]
        return [change for part in keys for change in _change(f"{key}.{part}", was.get(part), now.get(part))]
    return [f"{key} was {_short(was)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fixed(project: Project, name: str, dev: dict[str, Any] | None) -> dict[str, Any]:
    identity_ = identity(project, name)
    tried = (dev or {}).get("configurations", {}).get(name)
    needs_dev = project.recipe.strategy_of(name).correction != "none" and project.codebook.level in CLOSED
    if needs_dev and (tried is None or tried["identity"] != digest(identity_)):
        raise ConfigError(
            f"the correction of {name} is fitted on the development sample; run consilience annotate dev first"
            + (", for the recipe has changed since." if tried else ".")
        )
    return {
        "identity": identity_,
        "digest": digest(identity_),
        "correction": tried["correction"] if tried else None,
        "prompt": tried["prompt"] if tried else None,
        "dev": tried["validation"]["agreement"] if tried and tried["identity"] == digest(identity_) else None,
    }
