"""Which tensors the result has, and what each is called in the models it is merged from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from consilience.errors import BackendError, ConfigError
from consilience.merge.inputs import Input
from consilience.merge.layers import BEFORE, BEHIND, Place, depth_of, place_of, stack_sizes
from consilience.merge.recipe import ModelRef, Recipe, Slice

Inputs = Mapping[ModelRef, Input]
RefsOf = Callable[[Slice], Sequence[ModelRef]]  # the inputs of a slice, the base first


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the result and the name that it has in each input of its slice, whether there is one or not.

    `depth` is 0 in the first layer of the slice and 1 in the last, 0 outside the layers, where `layer` is None.
    """

    name: str
    names: Mapping[ModelRef, str]
    slice_: Slice
    depth: float
    layer: int | None


def targets_of(recipe: Recipe, inputs: Inputs, refs_of: RefsOf) -> Iterator[Target]:
    """Every tensor of the result, in the order of the base's or the first model's files.

    Raises `ConfigError` or `BackendError` where slices do not say where a tensor comes from.
    """
    if recipe.is_stacked:
        before, behind = _outside(recipe, inputs, refs_of)
        yield from before
        yield from _stacked(recipe, inputs, refs_of)
        yield from behind
        return
    (slice_,) = recipe.slices
    refs = refs_of(slice_)
    names = list(dict.fromkeys(name for ref in refs for name in inputs[ref].parts))
    sizes = stack_sizes(names)
    for name in names:
        place = place_of(name)
        depth = depth_of(place.layer, sizes[place.stack]) if place else 0.0
        yield Target(name, dict.fromkeys(refs, name), slice_, depth, place.layer if place else None)


def _stacked(recipe: Recipe, inputs: Inputs, refs_of: RefsOf) -> Iterator[Target]:
    """The layers of the slices, one after another."""
    layer = 0
    for slice_ in recipe.slices:
        starts, count = _ranges(slice_, inputs)
        refs = [ref for ref in refs_of(slice_) if ref in starts]
        stacks = {ref: _main_stack(inputs[ref]) for ref in refs}
        within = {ref: _by_layer(inputs[ref]) for ref in refs}
        for offset in range(count):
            rests = dict.fromkeys(rest for ref in refs for rest in within[ref].get(starts[ref] + offset, ()))
            for rest in rests:
                names = {ref: Place(stacks[ref], 0, rest).named(starts[ref] + offset) for ref in refs}
                yield Target(
                    Place(stacks[refs[0]], 0, rest).named(layer), names, slice_, depth_of(offset, count), layer
                )
            layer += 1


def _ranges(slice_: Slice, inputs: Inputs) -> tuple[dict[ModelRef, int], int]:
    """The first layer of every source, and how many layers the slice has."""
    starts, counts = {}, set()
    for source in slice_.sources:
        given = inputs[source.model]
        size = stack_sizes(given.parts)[_main_stack(given)]
        first, end = source.layers or (0, size)
        if not 0 <= first < end <= size:
            raise ConfigError(f"layers [{first}, {end}] of {given.label}: it has layers 0 to {size - 1}.")
        starts[source.model] = first
        counts.add(end - first)
    if len(counts) > 1:
        raise ConfigError(f"a slice has {sorted(counts)} layers of its models; expected as many of each.")
    return starts, counts.pop()


def _by_layer(given: Input) -> dict[int, list[str]]:
    """The names of the main stack's tensors behind the number of their layer, layer by layer."""
    stack = _main_stack(given)
    found: dict[int, list[str]] = {}
    for place in map(place_of, given.parts):
        if place is not None and place.stack == stack:
            found.setdefault(place.layer, []).append(place.rest)
    return found


def _outside(recipe: Recipe, inputs: Inputs, refs_of: RefsOf) -> tuple[list[Target], list[Target]]:
    """What lies before the layers, merged from the first slice's models, and behind them, from the last one's."""
    ends = (recipe.slices[0], recipe.slices[-1])
    names = [dict.fromkeys(name for ref in refs_of(end) for name in _not_in_main(inputs[ref])) for end in ends]
    same = refs_of(ends[0]) == refs_of(ends[1])
    sides: tuple[list[Target], list[Target]] = ([], [])
    for name in dict.fromkeys([*names[0], *names[1]]):
        is_copied = any(rule.copy and rule.when.holds(name, None) for rule in recipe.rules)
        side = 1 if BEHIND.search(name) else 0
        if not (same or is_copied or BEFORE.search(name) or BEHIND.search(name)):
            raise ConfigError(
                f"tensor {name} is outside the layers, and the first and the last slice come from different models. "
                "Say whose it is with a rule of our own recipe: {tensors: ..., copy: MODEL}."
            )
        if name not in names[side] and not is_copied:
            raise BackendError(
                f"tensor {name} is in {' and '.join(inputs[ref].label for ref in refs_of(ends[1 - side]))} and not in "
                f"{' and '.join(inputs[ref].label for ref in refs_of(ends[side]))}, the "
                f"{('first', 'last')[side]} slice, which gives what lies {('before', 'behind')[side]} the layers."
            )
        place = place_of(name)
        sizes = stack_sizes(names[side]) if place else {}
        depth = depth_of(place.layer, sizes.get(place.stack, 1)) if place else 0.0
        sides[side].append(Target(name, dict.fromkeys(refs_of(ends[side]), name), ends[side], depth, None))
    return sides


def _not_in_main(given: Input) -> list[str]:
    stack = _main_stack(given)
    return [name for name in given.parts if (place := place_of(name)) is None or place.stack != stack]


def _main_stack(given: Input) -> str:
    """The stack with as many layers as the configuration says, by the names before the layer's number."""
    sizes = stack_sizes(given.parts)
    fitting = [stack for stack, size in sizes.items() if size == given.layers]
    if len(fitting) != 1:
        there_are = ", ".join(f"{size} ({stack}*)" for stack, size in sizes.items()) or "no layers"
        raise BackendError(
            f"{given.label}: its configuration has {given.layers} layers and its tensors are in stacks of {there_are}; "
            "slices need one stack of that size. Use 'models'."
        )
    return fitting[0]
