"""A recipe and the models' headers become the engine's plan: every tensor of the result, with its inputs.

The tensors' names in the headers are the plan; there is no table of architectures, and nothing is dropped. A tensor
that is not the same in all inputs is refused by name, or copied where the caller asked for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from consilience.errors import BackendError, ConfigError, nearest, pick
from consilience.merge.beside import files_beside
from consilience.merge.card import model_card
from consilience.merge.inputs import EMBEDDINGS, Input, open_inputs
from consilience.merge.layers import place_of
from consilience.merge.methods import MERGES, Method, check_parameters
from consilience.merge.plan import MergePlan, Rows, TensorPlan
from consilience.merge.recipe import ModelRef, Parameters, Recipe, Slice, Source, look_up
from consilience.merge.targets import Target, targets_of
from consilience.merge.tokenizer import merge_vocabularies
from consilience.weights.headers import StoredTensor

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FLOATS = ("F64", "F32", "F16", "BF16")
HEAD = "lm_head.weight"
# Buffers that transformers computes itself: older checkpoints hold them, newer ones do not.
BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attention.masked_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line adds to a recipe."""

    copy_missing: bool = False  # a tensor that only some inputs have is copied from the first that has it
    untie: bool = False  # a tied head counts as a matrix of its own, equal to the embeddings
    allow_pickle: bool = False
    trust_remote_code: bool = False
    shard_bytes: int = 5_000_000_000


class Resolved(NamedTuple):
    """A plan, and the base that it was made against, where there is one."""

    plan: MergePlan
    base: Input | None


def plan_merge(recipe: Recipe, options: Options = Options()) -> Resolved:
    """The plan of `recipe`. Opens the models' headers, reads no weights, writes nothing.

    Raises `ConfigError` for what the recipe should say otherwise and `BackendError` for models that do not fit
    together, naming the tensor, the key or the model.
    """
    inputs = open_inputs(recipe, allow_pickle=options.allow_pickle, trust_remote_code=options.trust_remote_code)
    base = None if recipe.base is None else inputs[recipe.base]
    return Resolved(_Resolver(recipe, inputs, options).plan(), base)


class _Resolver:
    def __init__(self, recipe: Recipe, inputs: Mapping[ModelRef, Input], options: Options) -> None:
        self.recipe, self.options = recipe, options
        self.notes = dict.fromkeys(recipe.notes)
        self.inputs = self._heads(dict(inputs))
        names = dict.fromkeys([recipe.method, *(rule.method for rule in recipe.rules if rule.method)])
        self.methods = {name: pick(MERGES, name, "merge method") for name in names}
        self.uses_base = any(method.base != "none" for method in self.methods.values())
        self.donor = self._donor()
        for slice_ in recipe.slices:
            for name, method in self.methods.items():
                self._check_models(name, method, slice_)
        merged = {ref: self.inputs[ref] for ref in self._merged_models()}
        self.vocabularies = merge_vocabularies(recipe, merged, self.donor, self.inputs, self._note)

    def plan(self) -> MergePlan:
        recipe = self.recipe
        tensors = tuple(self._tensor(target) for target in targets_of(recipe, self.inputs, self._refs))
        rows = next((tensor.shape[0] for tensor in tensors if tensor.name.endswith(EMBEDDINGS)), None)
        files = files_beside(recipe, self.inputs, self.donor, self.vocabularies, rows, self.unties, self._note)
        files["README.md"] = model_card(recipe, self.inputs, self.donor, tuple(self.notes)).encode()
        return MergePlan(
            tensors=tensors,
            files=files,
            recipe={
                "yaml": recipe.source,
                "dialect": "mergekit" if recipe.is_mergekit else "consilience",
                "method": recipe.method,
                "base": None if recipe.base is None else self.inputs[recipe.base].label,
                "models": {given.label: str(ref) for ref, given in self.inputs.items()},
                "donor": self.inputs[self.donor].label,
                "notes": list(self.notes),
            },
            seed=recipe.seed,
            shard_bytes=self.options.shard_bytes,
        )

    def _note(self, line: str) -> None:
        self.notes[line] = None

    # -- models -------------------------------------------------------------------------------------------------------

    def _base_of(self, slice_: Slice) -> ModelRef | None:
        return slice_.base or self.recipe.base

    def _merged_models(self) -> tuple[ModelRef, ...]:
        """The models whose weights go into the result."""
        refs = [self._base_of(slice_) for slice_ in self.recipe.slices if self.uses_base]
        refs += [source.model for slice_ in self.recipe.slices for source in slice_.sources]
        refs += [rule.copy for rule in self.recipe.rules]
        return tuple(dict.fromkeys(ref for ref in refs if ref is not None))

    def _donor(self) -> ModelRef:
        """Whose configuration, tokenizer and chat template the result has: as said, the base, or the first model."""
        recipe = self.recipe
        if recipe.donor or recipe.base:
            return recipe.donor or recipe.base  # type: ignore[return-value]
        donor = recipe.slices[0].sources[0].model
        if len(self._merged_models()) > 1:
            self._note(f"configuration, tokenizer and chat template are those of the first model, {self._label(donor)}")
        return donor

    def _label(self, ref: ModelRef) -> str:
        return self.inputs[ref].label

    def _check_models(self, name: str, method: Method, slice_: Slice) -> None:
        base = self._base_of(slice_)
        models = [source for source in slice_.sources if method.base == "none" or source.model != base]
        least, most = method.models
        if method.base == "required" and base is None:
            key = "base_model" if self.recipe.is_mergekit else "base"
            raise ConfigError(f"{name} merges changes against a base. Give '{key}'.")
        if len(models) < least or (most is not None and len(models) > most):
            expected = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            beside = " beside the base" if method.base != "none" and base else ""
            raise ConfigError(f"{name} merges {expected} models{beside}; the recipe names {len(models)}.")
        is_listed = base in [source.model for source in slice_.sources]
        if method.base == "required" and slice_.sources[0].layers and not is_listed:
            raise ConfigError(
                f"a slice lacks the base {base}: {name} needs to know which of its layers the changes are against. "
                "List the base among the slice's sources."
            )

    def _heads(self, inputs: dict[ModelRef, Input]) -> dict[ModelRef, Input]:
        """The inputs, with a head of its own in all or in none.

        A head that the configuration ties is the embedding matrix, whatever a file holds under its name: it is left
        out, as every loader leaves it out. Beside a head that is not tied it is refused, or made a matrix of its own.
        """
        self.unties = False
        tied = {ref: given for ref, given in inputs.items() if given.is_tied}
        separate = [given for given in inputs.values() if not given.is_tied and given.head]
        if not tied:
            return inputs
        if separate and not self.options.untie:
            raise BackendError(
                f"{separate[0].label} has a head of its own ({separate[0].head}), and the configuration of "
                f"{next(iter(tied.values())).label} ties its head to the embeddings. --untie takes the embeddings as "
                "its head and writes an untied model."
            )
        self.unties = bool(separate)
        for ref, given in tied.items():
            kept = {name: part for name, part in given.parts.items() if name != given.head}
            if separate:
                self._note(f"{given.label}: the embeddings are also its head; the result is untied")
                if given.embeddings is None:
                    raise BackendError(f"{given.label} is tied, and has no one embedding matrix to take as its head.")
                kept[separate[0].head or HEAD] = given.parts[given.embeddings]
            elif given.head:
                self._note(f"{given.label}: {given.head} is left out; the configuration ties it to the embeddings")
            inputs[ref] = replace(given, parts=kept)
        return inputs

    # -- tensors ------------------------------------------------------------------------------------------------------

    def _refs(self, slice_: Slice) -> tuple[ModelRef, ...]:
        """The inputs of a slice, the donor or base first: in their order tensors are looked for."""
        refs = [source.model for source in slice_.sources]
        base = self._base_of(slice_)
        if base is not None and self.uses_base:
            refs = [base, *(ref for ref in refs if ref != base)]
        return tuple(refs)

    def _tensor(self, target: Target) -> TensorPlan:
        recipe = self.recipe
        rule = next((rule for rule in recipe.rules if rule.when.holds(target.name, target.layer)), None)
        if rule and rule.copy:
            name = target.names.get(rule.copy, target.name)
            if name not in self.inputs[rule.copy].parts:
                raise BackendError(
                    f"tensor {name} is to be copied from {self._label(rule.copy)}, which does not have it."
                )
            return self._copied(target, rule.copy, name)
        method_name = rule.method if rule else recipe.method
        method = self.methods[method_name]
        having = {ref: name for ref, name in target.names.items() if name in self.inputs[ref].parts}
        if len(having) < len(target.names):
            return self._missing(target, having)
        first = self.inputs[next(iter(having))].parts[next(iter(having.values()))].tensor
        if any(self.inputs[ref].parts[name].tensor.dtype not in FLOATS for ref, name in having.items()):
            return self._not_float(target, having)
        base = self._base_of(target.slice_) if method.base != "none" else None
        models = [source for source in target.slice_.sources if source.model != base]
        rows = {ref: self._rows(ref, name, target.name) for ref, name in having.items()}
        self._refuse_shapes(target.name, rows)
        return TensorPlan(
            name=target.name,
            dtype=STORED[recipe.dtype] if recipe.dtype else self._dtype(having, first.dtype),
            shape=next(iter(rows.values())).shape,
            method=method_name,
            parameters=self._parameters(target, method_name, method, models),
            models=tuple(rows[source.model] for source in models),
            base=None if base is None else rows[base],
        )

    def _dtype(self, having: Mapping[ModelRef, str], first: str) -> str:
        """Without `dtype` a tensor keeps the donor's; where the donor is not merged, the first input's."""
        return self.inputs[self.donor].parts[having[self.donor]].tensor.dtype if self.donor in having else first

    def _rows(self, ref: ModelRef, name: str, out_name: str) -> Rows:
        given = self.inputs[ref]
        part = given.parts[name]
        if self.vocabularies and self.vocabularies.covers(name, part.tensor.shape, given):
            return self.vocabularies.rows(ref, name, self.inputs)
        return Rows(given.label, part.tensor.shape, (part,))

    def _refuse_shapes(self, name: str, rows: Mapping[ModelRef, Rows]) -> None:
        shapes = {rows_.shape for rows_ in rows.values()}
        if len(shapes) == 1:
            return
        (first, one), *others = rows.items()
        other, two = next((ref, found) for ref, found in others if found.shape != one.shape)
        advice = "Merge models of one architecture."
        if one.shape[1:] == two.shape[1:] and place_of(name) is None:
            advice = "Where their vocabularies differ, give 'tokenizer: {source: base}' or 'union'."
        raise BackendError(
            f"tensor {name} has shape {list(one.shape)} in {self._label(first)} and {list(two.shape)} in "
            f"{self._label(other)}. {advice}"
        )

    def _missing(self, target: Target, having: Mapping[ModelRef, str]) -> TensorPlan:
        """A tensor that some inputs lack: a buffer is copied, anything else only when asked for."""
        lacking = [self._label(ref) for ref in target.names if ref not in having]
        source = self.donor if self.donor in having else next(iter(having))
        if not (self.options.copy_missing or target.name.endswith(BUFFERS)):
            shape = list(self.inputs[source].parts[having[source]].tensor.shape)
            raise BackendError(
                f"tensor {target.name} {shape} is in {', '.join(map(self._label, having))} and not in "
                f"{', '.join(lacking)}. --copy-missing copies such tensors as they are."
            )
        self._note(f"{target.name} is copied from {self._label(source)}; {', '.join(lacking)} lack it")
        return self._copied(target, source, having[source])

    def _copied(self, target: Target, ref: ModelRef, name: str) -> TensorPlan:
        rows = self._rows(ref, name, target.name)
        stored = self.inputs[ref].parts[name].tensor.dtype
        kept = self.recipe.dtype is None or stored not in FLOATS or target.name.endswith(BUFFERS)
        parameters = check_parameters("passthrough", {}, 1)
        dtype = stored if kept else STORED[self.recipe.dtype or ""]
        return TensorPlan(target.name, dtype, rows.shape, "passthrough", parameters, (rows,))

    def _not_float(self, target: Target, having: Mapping[ModelRef, str]) -> TensorPlan:
        """Numbers that are no floats are copied where all inputs agree; quantised weights that differ are refused."""
        tensors = {ref: self.inputs[ref].parts[name].tensor for ref, name in having.items()}
        (first, one), *others = tensors.items()
        for ref, other in others:
            if (other.dtype, other.shape) != (one.dtype, one.shape) or not _same_bytes(one, other):
                raise BackendError(
                    f"tensor {target.name} is stored as {one.dtype} in {self._label(first)} and as {other.dtype} in "
                    f"{self._label(ref)}, and differs; only float weights are merged. Save a quantised model in "
                    "bfloat16 first."
                )
        source = self.donor if self.donor in having else first
        return self._copied(target, source, having[source])

    def _parameters(self, target: Target, name: str, method: Method, models: Sequence[Source]) -> dict[str, Any]:
        """Every parameter that is said, resolved for this tensor, checked and with the method's defaults."""
        shared_scopes: list[Parameters] = [target.slice_.parameters, self.recipe.parameters]
        found: dict[str, Any] = {}
        known = {key for scope in shared_scopes for key in scope} | {
            key for model in models for key in model.parameters
        }
        taken = {key for method in self.methods.values() for key in method.parameters}
        for key in sorted(known - taken):
            there_are = ", ".join(method.parameters) or "no parameters"
            raise ConfigError(f"{name} takes no parameter {key!r}.{nearest(key, taken)} It takes {there_are}.")
        for key, parameter in method.parameters.items():
            if parameter.per_model or method.models == (1, 1):
                values = [
                    look_up(
                        [model.parameters, *shared_scopes], key, target.names[model.model], target.layer, target.depth
                    )
                    for model in models
                ]
                said = [value is not None for value in values]
                if any(said) and not all(said):
                    lacking = [self._label(model.model) for model, there in zip(models, said) if not there]
                    raise ConfigError(f"parameter {key!r} is missing for {', '.join(lacking)} (tensor {target.name}).")
                if all(said) and values:
                    found[key] = tuple(values) if parameter.per_model else values[0]
            else:
                if any(key in model.parameters for model in models):
                    raise ConfigError(f"{name} takes one {key!r} for all models, not one per model.")
                value = look_up(shared_scopes, key, target.name, target.layer, target.depth)
                if value is not None:
                    found[key] = value
            if key in self.recipe.required and key not in found:
                raise ConfigError(f"parameter {key!r} is missing for tensor {target.name}; {name} needs one per model.")
        try:
            return dict(check_parameters(name, found, len(models)))
        except ConfigError as error:
            raise ConfigError(f"tensor {target.name}: {error}") from None


def _same_bytes(one: StoredTensor, other: StoredTensor, chunk: int = 1 << 22) -> bool:
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        left = one.nbytes
        while left:
            count = min(chunk, left)
            if first.read(count) != second.read(count):
                return False
            left -= count
    return True
