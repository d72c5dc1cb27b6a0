"""Every method on vectors small enough to merge by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from consilience.errors import ConfigError
from consilience.merge import blocks
from consilience.merge.arrays import merge_arrays
from consilience.merge.methods import MERGES, check_parameters

Array = NDArray[np.float64]


def vector(*numbers: float) -> Array:
    return np.array(numbers, np.float64)


ONES = vector(1, 1, 1, 1)


def merged(method: str, base: Array | None, models: Sequence[Array], **parameters: Any) -> Array:
    return merge_arrays(method, base, models, **parameters)


def test_linear_by_hand() -> None:
    # (1 * 4 + 3 * 8) / 4 = 7; (1 * 0 + 3 * -4) / 4 = -3; without normalising 28 and -12.
    models = [vector(4, 0), vector(8, -4)]
    assert_allclose(merged("linear", None, models, weight=[1, 3]), vector(7, -3))
    assert_allclose(merged("linear", None, models, weight=[1, 3], normalize=False), vector(28, -12))
    assert_allclose(merged("linear", None, models), vector(6, -2))


def test_task_arithmetic_by_hand() -> None:
    # Deltas (1, 0) and (0, 2); weighted 1 and 2: (1, 4); halved: (0.5, 2); plus the base (1, 1). A third of it: over 3.
    models = [vector(2, 1), vector(1, 3)]
    assert_allclose(merged("task_arithmetic", vector(1, 1), models, weight=[1, 2], scale=0.5), vector(1.5, 3))
    assert_allclose(
        merged("task_arithmetic", vector(1, 1), models, weight=[1, 2], normalize=True), vector(1 + 1 / 3, 1 + 4 / 3)
    )


def test_task_arithmetic_takes_a_change_away() -> None:
    assert_allclose(merged("task_arithmetic", vector(1, 1), [vector(2, 0)], weight=-1), vector(0, 2))


def test_slerp_by_hand() -> None:
    # A right angle: half way is (e1 + e2) * sin(45°) = 0.7071 each; at a third sin(60°), sin(30°).
    ends = vector(1, 0), [vector(0, 1)]
    assert_allclose(merged("slerp", *ends, t=0.5), vector(0.5**0.5, 0.5**0.5))
    assert_allclose(merged("slerp", *ends, t=1 / 3), vector(3**0.5 / 2, 0.5))
    # Parallel: the chord.
    assert_allclose(merged("slerp", vector(1, 2), [vector(3, 6)], t=0.25), vector(1.5, 3))


def test_nuslerp_by_hand() -> None:
    # Deltas e1 and e2 at a right angle, t = 1 / (3 + 1).
    quarter = vector(np.sin(np.pi * 3 / 8), np.sin(np.pi / 8))
    models = [vector(1, 0), vector(0, 1)]
    assert_allclose(merged("nuslerp", None, models, weight=[3, 1]), quarter)
    assert_allclose(merged("nuslerp", vector(5, 5), [vector(6, 5), vector(5, 6)], weight=[3, 1]), 5 + quarter)
    # By row: the first rows are parallel (a chord), the second at a right angle.
    rows = [np.array([[1.0, 0], [1, 0]]), np.array([[5.0, 0], [0, 1]])]
    assert_allclose(merged("nuslerp", None, rows, weight=[3, 1], flatten=False), np.array([[2, 0], quarter]))


def test_multislerp_and_karcher_half_way() -> None:
    # Two unit vectors at a right angle have their mean half way, also for lengths 1 and 3: direction (1, 1), length 2.
    models = [vector(1, 0), vector(0, 3)]
    assert_allclose(merged("multislerp", None, models), vector(2**0.5, 2**0.5), rtol=1e-6)
    assert_allclose(merged("karcher", None, models), vector(2**0.5, 2**0.5), rtol=1e-6)
    # One pole thrice and its right angle once: the mean on the circle is at a quarter of the way, 22.5°.
    models = [vector(1, 0)] * 3 + [vector(0, 1)]
    quarter = vector(np.cos(np.pi / 8), np.sin(np.pi / 8))
    assert_allclose(merged("karcher", None, models, max_iter=100, tol=1e-12), quarter, atol=1e-9)


def test_karcher_of_opposite_directions() -> None:
    # The directions cancel: the plain mean, (4 - 3 + 0) / 3.
    assert_allclose(merged("karcher", None, [vector(4), vector(-3), vector(0)]), vector(1 / 3))
    # Two against one, on a line: no way leads round, so the two's direction, at the mean length (1 + 2 + 3) / 3.
    assert_allclose(merged("karcher", None, [vector(1), vector(-2), vector(3)]), vector(2))


def test_multislerp_where_nothing_changed_gives_the_base() -> None:
    assert_allclose(merged("multislerp", ONES, [ONES, ONES, ONES]), ONES)


def test_model_stock_by_hand() -> None:
    # Two deltas at 60 degrees, cos = 1/2: t = 2 * 0.5 / 1.5 = 2/3 of the mean delta.
    base, models = vector(0, 0), [vector(1, 0), vector(0.5, 3**0.5 / 2)]
    assert_allclose(merged("model_stock", base, models), 2 / 3 * vector(0.75, 3**0.5 / 4))
    # By row: the first rows at 60 degrees, the second at a right angle (t = 0).
    rows = [np.array([one, other]) for one, other in zip(models, (vector(1, 0), vector(0, 1)))]
    expected = np.array([2 / 3 * vector(0.75, 3**0.5 / 4), [0, 0]])
    assert_allclose(merged("model_stock", np.zeros((2, 2)), rows, filter_wise=True), expected, atol=1e-15)


def test_varm_by_hand() -> None:
    # Squares of the deltas (1, 1, 0, 0) and (0, 2, 0, 2) sum to 2 and 8: shares 0.2 and 0.8.
    models = [ONES + vector(1, 1, 0, 0), ONES + vector(0, 2, 0, 2)]
    assert_allclose(merged("varm", ONES, models), ONES + vector(0.2, 1.8, 0, 1.6))
    # Entry by entry: 1; (1 * 1 + 4 * 2) / 5 = 1.8; nothing; 2.
    assert_allclose(merged("varm", ONES, models, granularity="parameter"), ONES + vector(1, 1.8, 0, 2))


def test_varm_weighs_equally_where_nothing_changed() -> None:
    assert_allclose(merged("varm", ONES, [ONES, ONES]), ONES)


def test_ties_by_hand() -> None:
    # Deltas (4, -3, 1, 0.5) and (-2, 5, 3, 0). The two largest of each: (4, -3, 0, 0) and (0, 5, 3, 0).
    # Votes 4, 2, 3, 0: all +. Means of the agreeing: 4; 5; 3; nobody's 0.
    models = [ONES + vector(4, -3, 1, 0.5), ONES + vector(-2, 5, 3, 0)]
    assert_allclose(merged("ties", ONES, models, density=0.5), ONES + vector(4, 5, 3, 0))
    assert_allclose(merged("ties", ONES, models, density=0.5, scale=0.5), ONES + vector(2, 2.5, 1.5, 0))
    # Weights 2 and 1: votes 8, -6 + 5, 3, 0. Weighted sums of the agreeing: 8, -6, 3, 0.
    summed = merged("ties", ONES, models, density=0.5, weight=[2, 1], normalize=False)
    assert_allclose(summed, ONES + vector(8, -6, 3, 0))


def test_ties_weights_enter_the_vote_and_the_mean() -> None:
    # Untrimmed. Votes 3 * (4, -3, 1, 0.5) + (-2, 5, 3, 0) = (10, -4, 6, 1.5): signs +, -, +, +.
    # Means: 4; -3; (3 * 1 + 1 * 3) / 4 = 1.5; 0.5.
    models = [ONES + vector(4, -3, 1, 0.5), ONES + vector(-2, 5, 3, 0)]
    assert_allclose(merged("ties", ONES, models, density=1, weight=[3, 1]), ONES + vector(4, -3, 1.5, 0.5))


def test_ties_keeps_what_ties_with_the_smallest_kept() -> None:
    # One of four is kept; three are equally large.
    assert_allclose(merged("ties", ONES, [ONES + vector(1, -1, 1, 0.5)], density=0.25), ONES + vector(1, -1, 1, 0))


def test_ties_keeps_one_entry_at_least() -> None:
    assert_allclose(merged("ties", ONES, [ONES + vector(1, -2, 1, 0)], density=0.01), ONES + vector(0, -2, 0, 0))


def test_ties_elects_plus_when_the_votes_cancel() -> None:
    for models in ([vector(3), vector(-1)], [vector(-1), vector(3)]):
        assert_allclose(merged("ties", vector(1), models, density=1), vector(3))  # deltas 2 and -2


def test_ties_rescales_to_the_first_norm() -> None:
    # Sizes 4 + 3 + 2 + 1 = 10, of which 7 are kept.
    model = ONES + vector(4, -3, 2, 1)
    assert_allclose(merged("ties", ONES, [model], density=0.5, rescale="l1"), ONES + vector(40 / 7, -30 / 7, 0, 0))


def test_breadcrumbs_by_hand() -> None:
    # Of ten, gamma 0.1 drops the largest; density 0.5 keeps the next five.
    delta = vector(10, -9, 8, -7, 6, -5, 4, -3, 2, -1)
    kept = vector(0, -9, 8, -7, 6, -5, 0, 0, 0, 0)
    base = np.ones(10)
    assert_allclose(merged("breadcrumbs", base, [base + delta], density=0.5, gamma=0.1), base + kept)
    assert_allclose(merged("breadcrumbs", base, [base + delta], density=0.95, gamma=0.1), base + delta * (delta < 10))
    two = [base + delta, base - delta]
    elected = base + np.abs(kept)  # the votes cancel: +
    assert_allclose(merged("breadcrumbs_ties", base, two, density=0.5, gamma=0.1), elected)


def test_sce_by_hand() -> None:
    # Deltas (1, -1, 2, 0) and (3, 1, -2, 0): variances 1, 1, 4, 0; a third of the three that vary: the third entry.
    # eta = 4 / 8 each. Signs of the sums: +, + (0), + (0). All entries are merged: (1 + 3) / 2, 1, 2, 0.
    models = [ONES + vector(1, -1, 2, 0), ONES + vector(3, 1, -2, 0)]
    assert_allclose(merged("sce", ONES, models, density=0.34), ONES + vector(2, 1, 2, 0))
    assert_allclose(merged("sce", ONES, models, density=0.34, variant="mergekit"), ONES + vector(0, 0, 2, 0))
    # All selected: squares 6 and 14, so 0.3 and 0.7; 0.3 * 1 + 0.7 * 3 = 2.4.
    assert_allclose(merged("sce", ONES, models, density=1), ONES + vector(2.4, 1, 2, 0))


def test_nearswap_by_hand() -> None:
    # Deltas 0.5, 2, -4 at t = 1: shares 1, 1/2, 1/4.
    base = vector(1, 1, 1)
    assert_allclose(merged("nearswap", base, [base + vector(0.5, 2, -4)], t=1), base + vector(0.5, 1, -1))


def test_ram_by_hand() -> None:
    # Entry 0 by one model, 1 by both (averaged), 2 by none (below epsilon).
    models = [ONES[:3] + vector(2, 1, 0.1), ONES[:3] + vector(0, 3, 0.1)]
    assert_allclose(merged("ram", ONES[:3], models, epsilon=0.5), ONES[:3] + vector(2, 2, 0))
    # Model 0: one own, one shared: ratio 1, cut to 0.2; its own change times 1 + 0.1 * 0.2.
    assert_allclose(merged("ramplus_tl", ONES[:3], models, epsilon=0.5), ONES[:3] + vector(2 * 1.02, 2, 0))


def test_arcee_fusion_takes_the_important_entries() -> None:
    # One row: importance is |delta| times one number. Sizes 0, 1, 2, 3, 100: median 2, quartiles 1 and 3: 2 + 3 = 5.
    base = np.zeros((1, 5))
    model = base + vector(0, 1, -2, 3, 100)
    assert_allclose(merged("arcee_fusion", base, [model]), np.array([[0, 0, 0, 0, 100]]))


def test_passthrough_by_hand() -> None:
    assert_allclose(merged("passthrough", None, [vector(2, -4)], scale=0.5), vector(1, -2))


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_that_share_and_divides_by_it(density: float) -> None:
    base = np.zeros((500, 200))
    result = merged("dare_linear", base, [np.ones_like(base)], density=density)
    kept = result != 0
    # 100,000 draws: five standard errors
    assert abs(kept.mean() - density) < 5 * (density * (1 - density) / kept.size) ** 0.5
    assert_allclose(result[kept], 1 / density)
    assert kept.mean(1).std() < 3 * (density * (1 - density) / 200) ** 0.5  # not by rows


def test_dare_rescales_to_the_first_l1_norm() -> None:
    base, model = np.zeros((50, 40)), normal(50, 40, seed=1)
    result = merged("dare_linear", base, [model], density=0.3, rescale="l1")
    assert_allclose(np.abs(result).sum(), np.abs(model).sum())
    kept = result != 0
    assert_allclose(result[kept] / model[kept], (result[kept] / model[kept])[0])


def test_masks_hang_on_seed_tensor_model_and_entry_alone() -> None:
    base, model = np.zeros((50, 40)), normal(50, 40, seed=1)

    def kept(method: str, models: Sequence[Array], seed: int = 0, name: str = "w", **parameters: Any) -> Any:
        return merge_arrays(method, base, models, seed=seed, name=name, density=0.5, **parameters) != 0

    first = kept("dare_linear", [model])
    assert (first == kept("dare_ties", [model], rescale="none", weight=3.0)).all()
    assert (first == kept("dare_linear", [model, base])).all()
    for other in (
        kept("dare_linear", [model], seed=1),
        kept("dare_linear", [model], name="v"),
        kept("dare_linear", [base, model]),
    ):
        assert 0.4 < (first == other).mean() < 0.6


@pytest.mark.parametrize(("rows", "row"), [(400, 1000), (20, 20_001)])
def test_della_keeps_the_larger_more_often(rows: int, row: int) -> None:
    # A row's ranks: chance 0.5 - 0.3 for the smallest to 0.5 + 0.3 for the largest, linear in between.
    model = np.tile(np.linspace(0.5, 1.5, row), (rows, 1))
    model = np.random.default_rng(0).permuted(model, axis=1) * np.random.default_rng(1).choice([-1, 1], (rows, row))
    kept = merged("della_linear", np.zeros((rows, row)), [model], density=0.5, epsilon=0.3) != 0
    ranks = np.argsort(np.argsort(np.abs(model), axis=1), axis=1)
    for tenth in range(10):
        here = (ranks >= tenth * row // 10) & (ranks < (tenth + 1) * row // 10)
        expected = 0.2 + 0.6 * (tenth + 0.5) / 10
        assert abs(kept[here].mean() - expected) < 0.012  # five standard errors of 40,000 draws


def test_della_gives_equal_entries_equal_chances() -> None:
    kept = merged("della_linear", np.zeros((1000, 64)), [np.ones((1000, 64))], density=0.4, epsilon=0.3) != 0
    assert abs(kept.mean() - 0.4) < 0.01
    assert abs(kept[:, 0].mean() - kept[:, -1].mean()) < 0.11


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("distribution", ["normal", "lattice", "mostly zero", "outlier", "constant"])
@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.999])
def test_exact_selection_whatever_the_distribution(scale: float, distribution: str, density: float) -> None:
    """The threshold is that of a sort."""
    rng = np.random.default_rng(3)
    delta = rng.normal(size=200_000)
    if distribution == "lattice":
        delta = np.round(delta * 8)
    elif distribution == "mostly zero":
        delta[rng.random(delta.size) < 0.99] = 0
    elif distribution == "outlier":
        delta[1234] = 1e6
    elif distribution == "constant":
        delta = np.sign(delta)
    delta = delta * scale
    result = merged("ties", np.zeros_like(delta), [delta], density=density)
    least = np.sort(np.abs(delta))[delta.size - max(1, int(density * delta.size))]
    assert_allclose(result, np.where(np.abs(delta) >= least, delta, 0), rtol=1e-15)


@pytest.mark.parametrize(
    ("method", "given", "models", "message"),
    [
        ("tise", {}, 2, "no merge method is called 'tise'. Did you mean 'ties'"),
        ("linear", {"density": 0.5}, 2, "linear takes no 'density'"),
        ("ties", {"densty": 0.5}, 2, "Did you mean 'density'"),
        ("ties", {"density": 50}, 2, "density is 50; expected a number above 0 and up to 1"),
        ("sce", {"density": 0}, 2, "density is 0; expected a number above 0"),
        ("ties", {"density": "half"}, 2, "density is 'half'; expected a number"),
        ("sce", {"variant": "fusechatt"}, 2, "Did you mean 'fusechat'"),
        ("linear", {"weight": [1, -1]}, 2, "sum to 0"),
        ("linear", {"weight": [1, 2]}, 3, "got 2 values of weight for 3 models"),
        ("linear", {"weight": float("nan")}, 3, "weight is nan; expected a finite number"),
        ("ties", {"weight": [1, -0.5]}, 2, "expected none below 0"),
        ("slerp", {}, 1, "slerp needs 't'"),
        ("slerp", {"t": 0.5}, 2, "slerp merges 1 models beside the base, got 2"),
        ("model_stock", {}, 1, "merges 2 or more models"),
        ("della", {"density": 0.1, "epsilon": 0.15}, 2, "density ± epsilon"),
        ("karcher", {"max_iter": 1.5}, 2, "max_iter is 1.5; expected a whole number"),
    ],
)
def test_parameters_that_cannot_be_used(method: str, given: dict[str, Any], models: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_parameters(method, given, models)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_method_can_be_merged_with_its_defaults() -> None:
    assert blocks.CODES.keys() == blocks.BUFFERS.keys()
    for name, method in MERGES.items():
        needed = {"t": 0.5} if "t" in method.parameters else {}
        assert check_parameters(name, needed, method.models[0]).keys() == method.parameters.keys()
