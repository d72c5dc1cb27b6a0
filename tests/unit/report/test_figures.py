"""The figures: marks stand where their numbers say, and what cannot be drawn is said."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.report.figures import ForestRow, curves, forest_plot, ticks


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def drawn(figure):
    return ElementTree.fromstring(figure)


def marks(figure, kind):
    return [element for element in drawn(figure).iter() if element.get("class") == kind]


def texts(figure, kind):
    return ["".join(element.itertext()) for element in marks(figure, kind)]


def x_of_values(figure):
    """Value -> position, read off the ticks of the (one) panel."""
    signs = {"−": -1, "+": 1}
    at = {
        signs.get(text[0], 1) * float(text.lstrip("+−")): float(tick.get("x"))
        for tick, text in zip(marks(figure, "tick"), texts(figure, "tick"))
    }
    (low, x_low), (high, x_high) = min(at.items()), max(at.items())
    return lambda value: x_low + (value - low) / (high - low) * (x_high - x_low)


ROWS = [
    ForestRow("sft", "controls", [estimate(0.02, -0.01, 0.05)]),
    ForestRow("merged", "merges", [estimate(0.10, 0.04, 0.16)], remark="the result"),
]


def test_marks_stand_where_the_ticks_say():
    figure = forest_plot(ROWS, ["accuracy"], name="differences")
    x = x_of_values(figure)
    for row, line, point in zip(ROWS, marks(figure, "interval"), marks(figure, "point")):
        found = row.estimates[0]
        assert float(line.get("x1")) == pytest.approx(x(found["low"]), abs=0.05)
        assert float(line.get("x2")) == pytest.approx(x(found["high"]), abs=0.05)
        assert float(point.get("cx")) == pytest.approx(x(found["value"]), abs=0.05)
    assert float(marks(figure, "zero")[0].get("x1")) == pytest.approx(x(0), abs=0.05)
    assert texts(figure, "group") == ["controls", "merges"]
    assert texts(figure, "number end") == ["+0.020 [−0.010, +0.050]", "+0.100 [+0.040, +0.160]"]


def test_a_row_out_of_focus_does_not_set_the_axis_and_gets_an_arrow():
    far = ForestRow("source", "sources", [estimate(-4.0, -4.5, -3.5)], in_focus=False)
    alone, together = forest_plot(ROWS, ["accuracy"], name=""), forest_plot([*ROWS, far], ["accuracy"], name="")
    assert texts(alone, "tick") == texts(together, "tick")
    assert len(marks(together, "arrow")) == 1
    assert len(marks(together, "interval")) == len(ROWS)
    assert "−4.000 [−4.500, −3.500]" in texts(together, "number end")


def test_an_interval_that_leaves_the_axis_is_cut_at_its_end():
    wide = ForestRow("source", "sources", [estimate(0.1, -4.5, 4.7)], in_focus=False)
    figure = forest_plot([*ROWS, wide], ["accuracy"], name="")
    assert len(marks(figure, "arrow")) == 2
    assert len(marks(figure, "point")) == 3


def test_no_interval_is_a_hollow_point():
    figure = forest_plot([ForestRow("sft", "controls", [estimate(0.5)])], ["accuracy"], name="")
    assert len(marks(figure, "point hollow")) == 1
    assert not marks(figure, "interval")
    assert texts(figure, "number end") == ["+0.500 [no interval]"]


def test_all_differences_zero_and_a_missing_one():
    rows = [ForestRow("a", "merges", [estimate(0, 0, 0), None]), ForestRow("b", "merges", [None, estimate(1, 0, 2)])]
    figure = forest_plot(rows, ["accuracy", "nll"], name="")
    assert texts(figure, "number end") == ["0.000 [0.000, 0.000]", "+1.0 [0.0, +2.0]"]


def run(values, **parts):
    return [{"step": i + 1, "loss": value, **parts} for i, value in enumerate(values)]


def test_curves_draw_each_part_that_there_is():
    page = curves({"sft": run([2.0, 1.0], gold=None), "fused": run([2.0, 1.0], gold=1.5, fusion=0.5)})
    assert len(marks(page, "curve loss")) == 2
    assert len(marks(page, "curve gold")) == len(marks(page, "curve fusion")) == 1
    assert texts(page, "title") == ["sft", "fused"]


def test_a_loss_that_is_not_finite_leaves_a_gap_and_is_counted():
    page = curves({"sft": run([2.0, 1.5, math.nan, 1.0, 0.9])})
    assert len(marks(page, "curve loss")) == 2
    assert texts(page, "remark end") == ["1 steps not finite"]
    assert curves({"sft": run([math.nan, math.inf])}) == curves({}) == ""


def test_long_curves_are_means_of_neighbours():
    # 240 steps of 1, 3, 1, 3 ... in 120 points: every mean is 2, a level line.
    page = curves({"sft": run([1.0, 3.0] * 120)})
    points = [pair.split(",") for pair in marks(page, "curve loss")[0].get("points").split()]
    assert len(points) == 120
    assert len({y for _, y in points}) == 1


def test_text_is_escaped():
    rows = [ForestRow("<b>&", "merges", [estimate(1, 0, 2)])]
    assert texts(forest_plot(rows, ["<i>"], name='"<'), "label") == ["<b>&<b>&"]  # the tooltip and the label
    assert texts(curves({"<b>": run([1.0])}), "title") == ["<b>"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.11, 0.06, [-0.1, -0.05, 0, 0.05]), (0, 450, [0, 200, 400]), (-0.9, 0.9, [-0.5, 0, 0.5])],
)
def test_ticks_by_hand(low, high, expected):
    assert ticks(low, high, 4) == pytest.approx(expected)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_within(below, above):
    found = ticks(-below, above, 4)
    assert 1 <= len(found) <= 5
    assert 0 in found
    assert all(-below * (1 + 1e-9) <= tick <= above * (1 + 1e-9) for tick in found)
