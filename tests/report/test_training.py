"""The page of a training run, and the curves in it."""

from __future__ import annotations

import re

from medseg.report.charts import Curve, curve_chart
from medseg.report.training import FoldStory, training_page
from tests.models import small_plan


def story(name: str, dice: float) -> FoldStory:
    history = [
        {
            "step": 4 * n, "loss": 2.0 / n, "learning_rate": 0.01 / n, "gradient_norm": 1.0,
            "samples_per_s": 8.0, "data_wait_share": 0.02, "dice": {"low": 0.1 * n, "high": None},
        }
        for n in range(1, 6)
    ]  # fmt: skip
    labels = {"1": {"name": "low", "dice": dice}, "2": {"name": "high", "dice": None}}
    metrics = {"labels": labels, "mean": {"dice": dice}, "cases": {"a": {}, "b": {}}}
    seconds = {"prepare": 3.0, "train": 5400.0, "validate": 70.0}
    facts = {"steps": 20, "seconds": seconds, "memory": {"process_mb": 1500.0}}
    return FoldStory(name, history, metrics, facts)


def test_points_lie_where_their_values_say() -> None:
    curve = Curve("a < b", [(0, 1.0), (50, 3.0), (float("nan"), 2.0), (100, 2.0)], "#112233")
    svg = curve_chart([curve], title="t", across="step")
    (line,) = re.findall(r'<polyline points="([^"]+)"', svg)
    points = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert len(points) == 3
    # Evenly across, and the value 2 halfway between 1 and 3.
    assert points[1][0] - points[0][0] == points[2][0] - points[1][0] > 0
    assert abs(points[2][1] - (points[0][1] + points[1][1]) / 2) < 0.11
    assert points[1][1] < points[0][1]
    assert "a &lt; b" in svg
    assert "a < b" not in svg


def test_nothing_to_draw_is_nothing() -> None:
    assert curve_chart([], title="t", across="step") == ""
    assert curve_chart([Curve("a", [], "#112233")], title="t", across="step") == ""
    assert "<circle" in curve_chart([Curve("a", [(1, 1.0)], "#112233")], title="t", across="step")


def test_folds_stand_side_by_side_with_their_mean() -> None:
    plan = small_plan()
    page = training_page(plan, [story("0", 0.8), story("1", 0.9)], notes=["Buy a disk."])
    assert "Mean Dice of validation 0.8500" in page
    assert "40 steps in 2 folds in 3.0 h" in page
    assert "Buy a disk." in page
    row = re.search(r"<td>all folds</td>(.*?)</tr>", page)
    assert row is not None
    assert re.findall(r"<td>([^<]*)</td>", row[1]) == ["0.8500", "-", "0.8500", ""]
    assert "1.50 GB" in page
    assert "fold 1" in page


def test_a_fold_without_validation_is_told() -> None:
    plan = small_plan()
    page = training_page(plan, [FoldStory("all-data", [], None, {})])
    assert "nothing was judged" in page
    assert "patch_size" in page
