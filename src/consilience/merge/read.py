"""Which YAML it is: mergekit's, or ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from consilience.config import load_tree
from consilience.errors import ConfigError, nearest
from consilience.merge.mergekit import read_mergekit
from consilience.merge.ours import read_ours
from consilience.merge.recipe import Recipe

OTHER_TOOLS = {"gate_mode": "mergekit-moe", "experts": "mergekit-moe", "genome": "mergekit-evolve"}


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The merge that the file at `path` asks for, with `overrides` (`"parameters.density=0.3"`) applied to it first.

    A file with `merge_method:` is mergekit's, one with `method:` is ours. Raises `ConfigError` naming the key.
    """
    tree = load_tree(path, overrides)
    source = path.read_text(encoding="utf-8")
    if overrides:
        source = "\n".join([source.rstrip("\n"), *(f"# --set {override}" for override in overrides), ""])
    if "merge_method" in tree:
        return read_mergekit(tree, path=path, source=source)
    if "method" in tree:
        return read_ours(tree, path=path, source=source)
    for key, tool in OTHER_TOOLS.items():
        if key in tree:
            raise ConfigError(f"{path}: {key!r} is a key of {tool}, which is not supported; mergekit-yaml's files are.")
    meant = "".join(nearest(str(key), ["merge_method", "method"]) for key in tree)
    raise ConfigError(f"{path} names no method: expected 'method:' (ours) or 'merge_method:' (mergekit's).{meant}")
