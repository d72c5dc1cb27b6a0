"""Merging methods, each the plain statement of a formula: what it must know of the deltas, and how it combines them.

A method is a generator: it asks for measurements of a tensor (`Gram`, `Ranked`, `Kept` ...), is sent their
results, and returns a combination (`Linear`, `Masked`, `Pointwise`). Whoever drives it goes over the numbers; a method
sees only sums and counts, so it works the same on a vector and on a matrix larger than memory.

A delta is a model minus the base. All is computed in float64 and rounded once. Each docstring says where a published
code departs from its paper. Letters: K models, n entries of the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.errors import ConfigError, nearest, pick

Floats = NDArray[np.float64]
Parameters = Mapping[str, Any]


class Facts(NamedTuple):
    """What a method may know of a tensor beforehand; over several tensors, their sum."""

    size: int
    row: int  # entries of the last dimension
    models: int
    has_base: bool


# -- measurements: what is asked for, and what comes back


@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products of all pairs of inputs, or of deltas: float64 [K, K]; by row: [rows, K, K].

    Inputs are the base, where there is one, and the models.
    """

    deltas: bool
    by_row: bool = False


class OfPositive(NamedTuple):
    """The rank int(share * how many scores are above 0)."""

    share: float


Rank = int | OfPositive


@dataclass(frozen=True, slots=True)
class Ranked:
    """Scores at ranks, exactly: a list of numbers.

    `wanted` are pairs of a model and a rank, counted from the largest score, which has rank 1; at rank 0 is infinity.
    A score is not negative: "magnitude" is |delta|, "spread" the sum of the squared differences of all pairs of models
    (the same for every model), "importance" |delta| times the factor of its row.
    """

    kind: str
    wanted: tuple[tuple[int, Rank], ...]
    row_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Keep:
    """Which entries of the deltas are not set to 0. Tuples are per model."""

    how: str = "all"  # all, band, random, random by rank, spread
    low: tuple[float, ...] = ()  # band: the smallest and the largest |delta| kept
    high: tuple[float, ...] = ()
    density: tuple[float, ...] = ()
    epsilon: tuple[float, ...] = ()
    least: float = 0.0  # spread: the smallest kept


@dataclass(frozen=True, slots=True)
class Kept:
    """Per model, sum |delta|, sum |delta| of the kept, sum delta^2 of the kept: float64 [K, 3]."""

    keep: Keep


@dataclass(frozen=True, slots=True)
class Touched:
    """Per model, how many entries with |delta| > least it alone has, and how many others have too: int64 [K, 2]."""

    least: float


@dataclass(frozen=True, slots=True)
class RowDivergences:
    """Per row, KL(softmax(model) || softmax(base)) in nats, both with 1e-8 added: float64 [rows]."""


# -- combinations


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """sum_k c_k x_k over the inputs, the base first where there is one; one row of coefficients, or one per row.

    `keeps_same`: where all inputs are the same, the result is that. `record` is what the manifest says of it.
    """

    coefficients: Floats  # [1 or rows, inputs]
    keeps_same: bool = True
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """The base plus `scale` times a sum of the kept deltas.

    `way` "sum": sum_k vote_k factor_k delta_k. Else an election per entry: the sign of that sum (+ where it is 0);
    then sum_k mean_k factor_k delta_k over the deltas whose vote has that sign, for "mean" over their sum of mean_k.
    """

    keep: Keep
    way: str  # sum, mean, agreeing sum
    vote: tuple[float, ...]
    mean: tuple[float, ...]
    factor: tuple[float, ...]
    scale: float = 1.0
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Pointwise:
    """A formula in one entry of the base and of each model."""

    way: str  # nearswap, varm, ram, fusion
    numbers: tuple[float, ...]
    row_factors: Floats | None = None
    record: Mapping[str, Any] = field(default_factory=dict)


Measurement = Gram | Ranked | Kept | Touched | RowDivergences
Combination = Linear | Masked | Pointwise
Steps = Generator[Measurement, Any, Combination]


# -- parameters


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting of a method. `per_model`: a tuple, one value for each model in their order.

    `low` and `high` bound a number, and `above` excludes `low` itself; `choices` are what a string may be.
    """

    default: Any
    kind: type = float
    per_model: bool = False
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    choices: tuple[str, ...] = ()

    def check(self, name: str, given: Any) -> Any:
        """The value in its type. Raises `ConfigError`."""
        value: Any = given
        if self.kind is float and isinstance(given, int) and not isinstance(given, bool):
            value = float(given)
        is_kind = isinstance(given, bool) == (self.kind is bool) and issubclass(type(value), self.kind)
        if not is_kind:
            kinds = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
            raise ConfigError(f"{name} is {value!r}; expected {kinds[self.kind]}.")
        if self.choices:
            pick(dict.fromkeys(self.choices), value, name)
        if self.kind in (int, float):
            if not math.isfinite(value):
                raise ConfigError(f"{name} is {value}; expected a finite number.")
            if not (self.low < value if self.above else self.low <= value) or value > self.high:
                least = f"above {self.low:g}" if self.above else f"from {self.low:g}"
                most = "" if self.high == math.inf else f" and up to {self.high:g}"
                raise ConfigError(f"{name} is {value:g}; expected a number {least}{most}.")
        return value


def _density(default: float, *, per_model: bool = True) -> Parameter:
    return Parameter(default, per_model=per_model, low=0, high=1, above=True)


WEIGHT = Parameter(1.0, per_model=True)
SCALE = Parameter(1.0)
EPSILON = Parameter(0.15, per_model=True, low=0, high=0.5)
RESCALE = ("none", "l1", "density")


@dataclass(frozen=True, slots=True)
class Method:
    """A merging method: its steps, and what it takes. `models`: how many at least and at most, the base not counted."""

    steps: Callable[[Facts, Parameters], Steps]
    base: str  # required, optional, none
    models: tuple[int, int | None]
    parameters: Mapping[str, Parameter]
    random: bool = False
    average: bool = False  # between the smallest and the largest input at every entry


def check_parameters(method: str, given: Parameters, models: int) -> dict[str, Any]:
    """All of the method's parameters: those `given` (a single value stands for every model's) and the defaults.

    Raises `ConfigError` when the method, a parameter or the number of models cannot be used.
    """
    known = pick(MERGES, method, "merge method")
    least, most = known.models
    if models < least or (most is not None and models > most):
        expected = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        raise ConfigError(
            f"{method} merges {expected} models beside the base, got {models}. Change the list of models."
        )
    for name in given:
        if name not in known.parameters:
            takes = ", ".join(known.parameters) or "no parameters"
            raise ConfigError(f"{method} takes no {name!r}.{nearest(name, known.parameters)} It takes {takes}.")
    checked: dict[str, Any] = {}
    for name, parameter in known.parameters.items():
        value = given.get(name, parameter.default)
        if value is REQUIRED:
            raise ConfigError(f"{method} needs {name!r}. Give it a value.")
        if not parameter.per_model:
            checked[name] = parameter.check(name, value)
            continue
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * models
        if len(values) != models:
            raise ConfigError(
                f"got {len(values)} values of {name} for {models} models; expected one per model, in their order."
            )
        checked[name] = tuple(parameter.check(name, single) for single in values)
    _refuse_nonsense(method, checked)
    return checked


def _refuse_nonsense(method: str, parameters: Parameters) -> None:
    weights = parameters.get("weight")
    if weights and parameters.get("normalize") and abs(sum(weights)) <= 1e-12 * sum(map(abs, weights)):
        raise ConfigError(f"{method} divides by the sum of its weights, and {list(weights)} sum to 0. Change a weight.")
    if method == "nuslerp" and sum(weights or ()) == 0:
        raise ConfigError(f"nuslerp divides by the sum of its weights, and {list(weights or ())} sum to 0. Change one.")
    if method in ELECTIONS and weights and min(weights) < 0 and parameters.get("normalize"):
        raise ConfigError(f"{method} averages with its weights, got {list(weights)}; expected none below 0.")
    chances = zip(parameters["density"], parameters["epsilon"]) if method in ("della", "della_linear") else ()
    for density, epsilon in chances:
        if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            raise ConfigError(
                f"{method} keeps entries with chances density ± epsilon, got {density:g} ± {epsilon:g}; "
                "expected both between 0 and 1. Take a smaller epsilon."
            )


# -- linear combinations, whose coefficients follow from inner products


def _shares(weights: Sequence[float], normalize: bool) -> Floats:
    shares = np.array(weights, np.float64)
    return shares / shares.sum() if normalize else shares


def _of_deltas(coefficients: Floats) -> Floats:
    """Coefficients of the base and the models, from coefficients of the deltas along the last axis."""
    return np.concatenate([1 - coefficients.sum(-1, keepdims=True), coefficients], axis=-1)


def _combined(coefficients: Floats, keeps_same: bool = True, **record: Any) -> Linear:
    rows = np.atleast_2d(coefficients)
    if len(rows) == 1:
        record = {"coefficients": rows[0].tolist()} | record
    return Linear(np.ascontiguousarray(rows, np.float64), keeps_same, record)


def linear(facts: Facts, parameters: Parameters) -> Steps:
    """Weighted sum of the models, with `normalize` their mean (model soups, arXiv:2203.05482)."""
    yield from ()
    return _combined(_shares(parameters["weight"], parameters["normalize"]), keeps_same=parameters["normalize"])


def passthrough(facts: Facts, parameters: Parameters) -> Steps:
    """One model's tensor as it is, times `scale`: what layers are stacked with."""
    yield from ()
    return _combined(np.array([parameters["scale"]]), keeps_same=False)


def task_arithmetic(facts: Facts, parameters: Parameters) -> Steps:
    """Adds the weighted deltas to the base (arXiv:2212.04089): theta_0 + scale * sum_k w_k delta_k.

    Weights are not normalised unless asked for; a negative one takes a model's change away. The paper tunes `scale` on
    held-out data, near 0.3 to 0.4 for eight models. The one broad study on LLMs (arXiv:2511.21437) finds it the only
    method that reliably helps.
    """
    yield from ()
    shares = _shares(parameters["weight"], parameters["normalize"])
    return _combined(_of_deltas(parameters["scale"] * shares))


def _arc(t: float, cosines: Floats, straight: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """What the two ends count at part t of the great circle between them; of the chord where `straight`."""
    angle = np.arccos(np.clip(cosines, -1, 1))
    sine = np.where(straight, 1, np.sin(angle))
    return (
        np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine),
        np.where(straight, t, np.sin(t * angle) / sine),
    )


def _cosine(products: Floats, a: int, b: int, least: float = 0.0) -> Floats:
    """Cosines from inner products [..., K, K]; 0 where a norm is not above `least`."""
    one, other = products[..., a, a], products[..., b, b]
    sound = (np.sqrt(one) > least) & (np.sqrt(other) > least)
    return np.where(sound, products[..., a, b] / np.sqrt(np.where(sound, one * other, 1)), 0.0)


def slerp(facts: Facts, parameters: Parameters) -> Steps:
    """The great circle from the base (t = 0) to the model (t = 1), as long vectors; the chord where |cos| > 0.9995."""
    products = yield Gram(deltas=False)
    t = parameters["t"]
    cosine = _cosine(products, 0, 1)
    return _combined(np.array(_arc(t, cosine, np.abs(cosine) > 0.9995)), t=t, cosine=float(cosine))


def nuslerp(facts: Facts, parameters: Parameters) -> Steps:
    """slerp of two models, or of their deltas where there is a base, at t = w_2 / (w_1 + w_2).

    With `flatten` false, row by row. The norm is interpolated with the direction, as in mergekit.
    """
    weights = parameters["weight"]
    products = yield Gram(deltas=facts.has_base, by_row=not parameters["flatten"])
    cosines = _cosine(products, 0, 1)
    # Where rounding leaves no angle to speak of, the chord.
    ends = np.stack(_arc(weights[1] / sum(weights), cosines, 1 - cosines**2 <= 1e-15), axis=-1)
    return _combined(_of_deltas(ends) if facts.has_base else ends)


def multislerp(facts: Facts, parameters: Parameters) -> Steps:
    """The weighted mean direction of several models (of deltas, with a base), at their weighted mean norm.

    Goddard's multi-SLERP: exponential map at the normalised mean of the unit vectors. A delta that is zero adds
    nothing; where all are zero the result is the base (mergekit stops there). Where the unit vectors cancel, the plain
    weighted sum.
    """
    shares = _shares(parameters["weight"], parameters["normalize"])
    if facts.models == 1:
        ends = np.ones(1)
        return _combined(_of_deltas(ends) if facts.has_base else ends)
    products = yield Gram(deltas=facts.has_base)
    eps = parameters["eps"]
    norms = np.sqrt(np.diagonal(products))
    units = 1 / (norms + eps)  # coefficients that make unit vectors
    mean = shares * units
    length = _norm(mean, products)
    if length < eps:
        coefficients = shares
    else:
        mean = mean / length
        to_mean = units * (products @ mean)
        tangent = shares * units - float(shares @ to_mean) * mean
        angle = _norm(tangent, products) + eps
        coefficients = float(shares @ norms) * (mean * math.cos(angle) + tangent * (math.sin(angle) / angle))
    return _combined(_of_deltas(coefficients) if facts.has_base else coefficients)


def _norm(coefficients: Floats, products: Floats) -> float:
    """The norm of a linear combination; rounding may make its square a little negative."""
    return math.sqrt(max(float(coefficients @ products @ coefficients), 0.0))


def karcher(facts: Facts, parameters: Parameters) -> Steps:
    """The Riemannian mean of the models' directions on the sphere, times their mean norm (arXiv:2603.04972).

    Found by at most `max_iter` steps in the tangent space, until a step is shorter than `tol`. Where the directions
    cancel, the models' plain mean.
    """
    products = yield Gram(deltas=False)
    first = 1 if facts.has_base else 0
    products = products[first:, first:]
    norms = np.sqrt(np.diagonal(products))
    present = norms > 0
    if not present.any():
        return _combined(np.full(facts.models, 1 / facts.models))
    units = np.where(present, 1 / np.where(present, norms, 1), 0)
    share = 1 / facts.models
    mean = share * units
    if _norm(mean, products) < 1e-6:
        coefficients = np.full(facts.models, share)
        return _combined(np.concatenate([[0.0], coefficients]) if first else coefficients, iterations=0)
    mean = mean / _norm(mean, products)
    iterations = 0
    while iterations < parameters["max_iter"]:
        iterations += 1
        step = np.zeros(facts.models)
        for k in np.flatnonzero(present):
            cosine = float(np.clip(units[k] * (products[k] @ mean), -1, 1))
            angle = math.acos(cosine)
            if angle < parameters["tol"] or math.pi - angle < 1e-6:
                continue  # there already, or straight opposite, where every way is as short
            towards = -cosine * mean
            towards[k] += units[k]
            step += share * angle / math.sin(angle) * towards
        length = _norm(step, products)
        if length < parameters["tol"]:
            break
        mean = math.cos(length) * mean + math.sin(length) * step / length
        mean = mean / _norm(mean, products)
    coefficients = mean * share * norms.sum()
    if first:
        coefficients = np.concatenate([[0.0], coefficients])
    return _combined(coefficients, iterations=iterations)


def model_stock(facts: Facts, parameters: Parameters) -> Steps:
    """Between the base and the models' mean, nearer the mean the smaller their angles (arXiv:2403.19522).

    t = K c / (1 + (K - 1) c), c the mean cosine of all pairs of deltas; per row with `filter_wise`. The paper derives
    it for two models; for more this is its appendix, and mergekit.
    """
    products = yield Gram(deltas=True, by_row=parameters["filter_wise"])
    count = facts.models
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    cosine = sum((_cosine(products, a, b) for a, b in pairs), np.zeros(products.shape[:-2])) / len(pairs)
    below = 1 + (count - 1) * cosine
    t = np.where(np.abs(below) < 1e-6, 0.0, count * cosine / np.where(np.abs(below) < 1e-6, 1, below))
    coefficients = np.repeat(t[..., None] / count, count, axis=-1)
    record: dict[str, Any] = {} if parameters["filter_wise"] else {"cosine": float(cosine), "t": float(t)}
    return _combined(_of_deltas(coefficients), **record)


def varm(facts: Facts, parameters: Parameters) -> Steps:
    """Weights each model by how much it changed (VaRM, FuseChat 1.0, arXiv:2402.16107).

    W_j = mean(delta_j^2) / sum_j mean(delta_j^2) over a unit of parameters and theta = sum_j W_j theta_j, with deltas
    against the pivot; equal weights where no model changed anything. `granularity` is the unit: "matrix" as in the
    paper, "parameter" (each entry), "layer" or "model". The paper's formula, not FuseAI's script, which read the same
    analysis for every model and so averaged plainly.
    """
    if parameters["granularity"] == "parameter":
        return Pointwise("varm", ())
    products = yield Gram(deltas=True)
    shares = _shares_of(np.diagonal(products))
    return _combined(_of_deltas(shares), shares=shares.tolist())


def _shares_of(squares: Floats) -> Floats:
    total = squares.sum()
    return squares / total if 0 < total < math.inf else np.full(len(squares), 1 / len(squares))


# -- elections: trimmed deltas, a sign per entry, a mean of those that have it


def _rescaled(keep: Keep, rescale: str, density: Sequence[float]) -> Generator[Measurement, Any, tuple[float, ...]]:
    """What the kept deltas are multiplied with so that the whole is as large as before."""
    if rescale == "none" or keep.how == "all":
        return (1.0,) * len(density)
    if rescale == "density":
        return tuple(1 / share for share in density)
    sums = yield Kept(keep)
    # mergekit's guard: what is as small as that is left alone
    return tuple(float(before / after) if before >= 1e-7 and after >= 1e-7 else 1.0 for before, after, _ in sums)


def _sum_or_election(
    keep: Keep, parameters: Parameters, factor: tuple[float, ...], elects: bool, **record: Any
) -> Masked:
    weight = tuple(parameters["weight"])
    scale = parameters["scale"]
    if elects:
        way = "mean" if parameters["normalize"] else "agreeing sum"
    else:
        way = "sum"
        scale = scale / sum(weight) if parameters["normalize"] else scale
    if any(share != 1 for share in factor):
        record = record | {"rescaled_by": list(factor)}
    return Masked(keep, way, weight, weight, factor, scale, record)


def ties(facts: Facts, parameters: Parameters) -> Steps:
    """Trims each delta, elects a sign per entry, averages the deltas that have it (arXiv:2306.01708, algorithm 1).

    Trim: the int(density * n) largest entries of each delta are kept, at least one; what ties with the smallest kept
    is kept too, so no entry is preferred for its place. `scope` "tensor" trims each tensor for itself (mergekit),
    "global" all tensors together (the paper). Elect: the sign of sum_k w_k delta_k, + where that is 0. Merge: the mean
    of the deltas of that sign, weighted by w_k, or without `normalize` their weighted sum, times `scale`. The paper
    has no weights.
    """
    density = parameters["density"]
    ranks = {k: max(1, int(share * facts.size)) for k, share in enumerate(density) if share < 1}
    least = dict(zip(ranks, (yield Ranked("magnitude", tuple(ranks.items()))))) if ranks else {}
    low = tuple(least.get(k, 0.0) for k in range(facts.models))
    keep = Keep("band", low, (math.inf,) * facts.models) if ranks else Keep()
    factor = yield from _rescaled(keep, parameters["rescale"], density)
    return _sum_or_election(keep, parameters, factor, True, smallest_kept=list(low))


def _dare(elects: bool) -> Callable[[Facts, Parameters], Steps]:
    def steps(facts: Facts, parameters: Parameters) -> Steps:
        """Keeps each entry of a delta with chance `density`, at random (DARE, arXiv:2311.03099).

        `rescale` "density" divides by the chance, as the paper does; "l1" restores the delta's L1 norm, as mergekit
        does since 2024. Then the sum of the weighted deltas, or for dare_ties the election of TIES.
        """
        density = parameters["density"]
        keep = Keep("random", density=density) if min(density) < 1 else Keep()
        factor = yield from _rescaled(keep, parameters["rescale"], density)
        return _sum_or_election(keep, parameters, factor, elects)

    return steps


def _della(elects: bool) -> Callable[[Facts, Parameters], Steps]:
    def steps(facts: Facts, parameters: Parameters) -> Steps:
        """DARE with a chance that grows with an entry's rank in its row (DELLA, arXiv:2406.11617).

        From density - epsilon for the smallest to density + epsilon for the largest. Ranks are counted in bins 1/32
        of an octave wide (16 octaves), whose entries share their mean rank; so equal entries have equal chances,
        which a sort does not give them.
        """
        density = parameters["density"]
        keep = Keep("random by rank", density=density, epsilon=parameters["epsilon"]) if min(density) < 1 else Keep()
        factor = yield from _rescaled(keep, parameters["rescale"], density)
        return _sum_or_election(keep, parameters, factor, elects)

    return steps


def _breadcrumbs(elects: bool) -> Callable[[Facts, Parameters], Steps]:
    def steps(facts: Facts, parameters: Parameters) -> Steps:
        """Drops the largest `gamma` and the smallest entries of each delta; `density` are kept (arXiv:2312.06795).

        Where both together would drop more than they may, fewer of the largest go. What ties with an end is kept.
        """
        low, high = [0.0] * facts.models, [math.inf] * facts.models
        wanted: list[tuple[int, Rank]] = []
        for k, (density, gamma) in enumerate(zip(parameters["density"], parameters["gamma"])):
            if density < 1:
                kept_count = max(1, int(density * facts.size))
                top = min(int(gamma * facts.size), facts.size - kept_count)
                wanted += [(k, top + kept_count), (k, top + 1)]
        if wanted:
            ends = yield Ranked("magnitude", tuple(wanted))
            for (k, _), least, largest in zip(wanted[::2], ends[::2], ends[1::2]):
                low[k], high[k] = least, largest
        keep = Keep("band", tuple(low), tuple(high)) if wanted else Keep()
        factor = yield from _rescaled(keep, parameters["rescale"], parameters["density"])
        return _sum_or_election(keep, parameters, factor, elects, smallest_kept=low, largest_kept=high)

    return steps


def sce(facts: Facts, parameters: Parameters) -> Steps:
    """Select, Calculate, Erase (FuseChat, arXiv:2408.07990), then the weighted mean of what is left.

    Select: the int(density * nonzero) entries whose deltas vary most between the models (population variance; what
    ties with the last is selected too); all entries at density 1. Calculate: eta_k = mean(delta_k^2) over the
    selected entries / the sum of these over k; equal where all are 0. Erase: per entry, only deltas with the sign of
    sum_k delta_k (+ where that is 0) stay. Merge: theta_0 + sum_k eta_k delta_k / sum_k eta_k over what stayed.

    `variant` says what the selection enters: "fusechat", as in FuseAI's code, only eta, so that every entry is
    merged; "mergekit", as in the paper's order of steps, the deltas themselves, so that the rest keeps the base's
    value. They agree at density 1. mergekit's own code also takes equal weights when the summed mean squares are below
    1e-6, the usual case for small learning rates; that is not done here.
    """
    keep = Keep()
    if parameters["density"] < 1:
        (least,) = yield Ranked("spread", ((0, OfPositive(parameters["density"])),))
        keep = Keep("spread", least=least)
    sums = yield Kept(keep)
    shares = _shares_of(sums[:, 2])
    merged = keep if parameters["variant"] == "mergekit" else Keep()
    ones = (1.0,) * facts.models
    return Masked(merged, "mean", ones, tuple(shares.tolist()), ones, 1.0, {"shares": shares.tolist()})


# -- methods that look at entries


def nearswap(facts: Facts, parameters: Parameters) -> Steps:
    """Moves from the base to the model by min(1, t / |delta|): entries nearer than t are swapped (alchemonaut)."""
    yield from ()
    return Pointwise("nearswap", (parameters["t"],))


def arcee_fusion(facts: Facts, parameters: Parameters) -> Steps:
    """Takes the model's entries that are important, the base's elsewhere (Arcee Fusion).

    Importance is |delta| times KL(softmax of the model's row || of the base's row); the threshold is its median plus
    1.5 times its interquartile range. Exact quantiles: mergekit's are of a random million where there are more.
    """
    divergences = yield RowDivergences()
    factors = tuple(divergences.tolist())
    last = facts.size - 1
    # Places in ascending order, as mergekit takes them; a rank counts from the largest.
    wanted = tuple((0, facts.size - int(share * last)) for share in (0.25, 0.5, 0.75))
    lower, median, upper = yield Ranked("importance", wanted, factors)
    least = median + 1.5 * (upper - lower)
    return Pointwise("fusion", (least,), np.array(factors), {"least_importance": least})


def _ram(rewards_alone: bool) -> Callable[[Facts, Parameters], Steps]:
    def steps(facts: Facts, parameters: Parameters) -> Steps:
        """Adds what only one model changed, averages what several did (RAM, arXiv:2601.13572).

        A change is |delta| > epsilon. ramplus_tl multiplies a model's own changes by 1 + r * min(shared / own, alpha).
        """
        alone: Floats = np.ones(facts.models)
        if rewards_alone:
            counts = yield Touched(parameters["epsilon"])
            ratio = counts[:, 1] / np.maximum(counts[:, 0], parameters["epsilon"])
            alone = 1 + parameters["r"] * np.clip(ratio, 0, parameters["alpha"])
        return Pointwise("ram", (parameters["epsilon"], *alone.tolist()), None, {"own_changes_times": alone.tolist()})

    return steps


ELECTIONS = ("ties", "dare_ties", "della", "breadcrumbs_ties")


def _sparse(rescale: str, normalize: bool, **more: Parameter) -> dict[str, Parameter]:
    return {
        "weight": WEIGHT,
        **more,
        "scale": SCALE,
        "normalize": Parameter(normalize, bool),
        "rescale": Parameter(rescale, str, choices=RESCALE),
    }


MANY, TWO, ONE = (1, None), (2, 2), (1, 1)
NORMALIZE = Parameter(True, bool)
GAMMA = Parameter(0.01, per_model=True, low=0, high=1)

MERGES: dict[str, Method] = {
    "arcee_fusion": Method(arcee_fusion, "required", ONE, {}, average=True),
    "breadcrumbs": Method(
        _breadcrumbs(False), "required", MANY, _sparse("none", False, density=_density(0.9), gamma=GAMMA)
    ),
    "breadcrumbs_ties": Method(
        _breadcrumbs(True), "required", MANY, _sparse("none", False, density=_density(0.9), gamma=GAMMA)
    ),
    "dare_linear": Method(
        _dare(False), "required", MANY, _sparse("density", False, density=_density(0.5)), random=True
    ),
    "dare_ties": Method(_dare(True), "required", MANY, _sparse("density", False, density=_density(0.5)), random=True),
    "della": Method(
        _della(True), "required", MANY, _sparse("density", True, density=_density(0.5), epsilon=EPSILON), random=True
    ),
    "della_linear": Method(
        _della(False), "required", MANY, _sparse("density", False, density=_density(0.5), epsilon=EPSILON), random=True
    ),
    "karcher": Method(
        karcher, "none", MANY, {"max_iter": Parameter(10, int, low=1), "tol": Parameter(1e-5, low=0, above=True)}
    ),
    "linear": Method(linear, "none", MANY, {"weight": WEIGHT, "normalize": NORMALIZE}, average=True),
    "model_stock": Method(model_stock, "required", (2, None), {"filter_wise": Parameter(False, bool)}),
    "multislerp": Method(
        multislerp,
        "optional",
        MANY,
        {"weight": WEIGHT, "normalize": NORMALIZE, "eps": Parameter(1e-8, low=0, above=True)},
    ),
    "nearswap": Method(nearswap, "required", ONE, {"t": Parameter(REQUIRED, low=0)}, average=True),
    "nuslerp": Method(nuslerp, "optional", TWO, {"weight": WEIGHT, "flatten": Parameter(True, bool)}),
    "passthrough": Method(passthrough, "none", ONE, {"scale": SCALE}),
    "ram": Method(_ram(False), "required", MANY, {"epsilon": Parameter(1e-5, low=0)}),
    "ramplus_tl": Method(
        _ram(True),
        "required",
        MANY,
        {"epsilon": Parameter(1e-5, low=0), "r": Parameter(0.1), "alpha": Parameter(0.2, low=0)},
    ),
    "sce": Method(
        sce,
        "required",
        MANY,
        {
            "density": _density(0.1, per_model=False),
            "variant": Parameter("fusechat", str, choices=("fusechat", "mergekit")),
        },
        average=True,
    ),
    "slerp": Method(slerp, "required", ONE, {"t": Parameter(REQUIRED)}),
    "task_arithmetic": Method(
        task_arithmetic, "required", MANY, {"weight": WEIGHT, "scale": SCALE, "normalize": Parameter(False, bool)}
    ),
    "ties": Method(
        ties,
        "required",
        MANY,
        _sparse(
            "none",
            True,
            density=_density(0.2),
            scope=Parameter("tensor", str, choices=("tensor", "global")),
        ),
        average=True,
    ),
    "varm": Method(
        varm,
        "required",
        MANY,
        {"granularity": Parameter("matrix", str, choices=("parameter", "matrix", "layer", "model"))},
        average=True,
    ),
}


def unit_of(parameters: Parameters) -> str:
    """What is measured together: "tensor", "layer" or "model"."""
    if parameters.get("scope") == "global" or parameters.get("granularity") == "model":
        return "model"
    return "layer" if parameters.get("granularity") == "layer" else "tensor"
