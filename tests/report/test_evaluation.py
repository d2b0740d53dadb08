"""The page of an evaluation and its charts: what stands in them, and that names are text."""

from __future__ import annotations

import copy
import io
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from medseg.core.labels import LabelSet
from medseg.report.charts import Strip, bland_altman, strip_chart
from medseg.report.evaluation import evaluation_page, summary_rows
from medseg.report.overlay import overlay_layers
from medseg.report.pictures import CasePicture
from medseg.report.tables import latex_table, markdown_table
from tests.phantoms import blobs, lopsided_geometry

EVIL = '<img src=x onerror="alert(1)">&'


def _metrics(value: float | None) -> dict[str, Any]:
    names = ("dice", "hd95_mm", "assd_mm", "nsd", "nsd_voxel_border", "volume_difference", "iou")
    found: dict[str, Any] = dict.fromkeys(names, value)
    found |= {f"{name}_interval": [None, None] for name in names}
    return found


@pytest.fixture
def result() -> dict[str, Any]:
    scores = dict.fromkeys(("dice", "hd95_mm", "nsd"), 0.5)
    case = scores | {"prediction_ml": 10.0, "reference_ml": 12.0}
    return {
        "mean": _metrics(0.5) | {"dice_interval": [0.4, 0.6]},
        "labels": {"1": _metrics(0.5) | {"name": EVIL, "cases": 2}},
        "cases": {EVIL: {"1": case}, "b": {"1": case | {"dice": None, "prediction_ml": 0.0}}},
        "definitions": {"tolerance_mm": 1.0, "nsd": "surface-element"},
        "missing": [EVIL], "unpaired": [], "failed": {EVIL: EVIL},
    }  # fmt: skip


def test_names_are_text(result: dict[str, Any]) -> None:
    page = evaluation_page(result, [], files=["metrics.json"])
    assert EVIL not in page
    assert "onerror=&quot;" in page
    assert "<img" not in page
    assert "0.500\n(0.400 to 0.600)" in page


def test_whatever_was_asked_for_is_there(result: dict[str, Any]) -> None:
    heads, rows = summary_rows(result)
    assert heads[:2] == ["label", "Dice"]
    assert rows[-1][:2] == ["mean", "0.500 (0.400 to 0.600)"]
    full = copy.deepcopy(result)
    full["second_reader"] = {"mean": _metrics(0.9), "labels": {"1": _metrics(0.875)}, "cases": 1}
    full["groups"] = {"fold 0": {"mean": _metrics(0.25), "cases": 1}}
    test = {
        "cases": 2, "mean_difference": 0.0625, "interval": [0.01, 0.1], "p_value": 0.03,
        "rank_biserial": 0.8, "higher": 2, "lower": 0,
    }  # fmt: skip
    full["comparison"] = {
        "against": "other", "cases": 2, "mean": dict.fromkeys(("dice", "nsd", "hd95_mm"), test),
        "labels": {"1": {"name": "liver"} | dict.fromkeys(("dice", "nsd", "hd95_mm"), test)},
        "changed": [{"case": "b", "dice": 0.5, "dice_against": 0.75, "change": 0.25}],
    }  # fmt: skip
    page = evaluation_page(full, [], files=[])
    for text in ("0.875", "fold 0", "0.250", "+0.0625 (+0.0100 to +0.1000)", "0.750"):
        assert text in page
    assert summary_rows(full)[0][2] == "Dice of second reader"


def test_strips_lie_where_their_values_are() -> None:
    points = [("a", 0.0), ("b", 0.5), ("c", 1.0)]
    svg = strip_chart([Strip(EVIL, points, ceiling=0.5), Strip("none", [])], title=EVIL)
    tree = ElementTree.fromstring(svg)
    dots = [float(dot.attrib["cx"]) for dot in tree.iter("circle")]
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1])
    median = next(line for line in tree.iter("line") if line.attrib.get("class") == "median")
    assert float(median.attrib["x1"]) == pytest.approx(dots[1])
    assert "onerror" in "".join(tree.itertext())
    assert "none" not in svg
    assert strip_chart([], title="empty") == ""
    # One value alone still has an axis.
    ElementTree.fromstring(strip_chart([Strip("one", [("a", 3.0)])], title="one"))


def test_limits_of_agreement_by_hand() -> None:
    points = [("a", 110.0, 90.0), ("b", 90.0, 110.0), ("c", 0.0, 0.0), ("d", np.nan, 1.0)]
    svg = bland_altman(points, title="volumes")
    texts = re.findall(r">([^<]*sd|mean) ([-+][\d.]+) %", svg)
    # Differences of 20 and -20 percent: mean 0, deviation 28.3, limits 55.4 apart.
    assert texts == [("-1.96 sd", "-55.4"), ("mean", "+0.0"), ("+1.96 sd", "+55.4")]
    assert len(list(ElementTree.fromstring(svg).iter("circle"))) == 2
    assert bland_altman([], title="none") == ""


def test_layers_fit_over_each_other() -> None:
    shape = (24, 20, 16)
    mask = blobs(shape)[1]
    labels = LabelSet.from_names({1: "low", 2: "high"})
    voxels = mask.astype(np.float32)
    for scan in (None, voxels):
        case = CasePicture("a", lopsided_geometry(shape), {"truth": mask, "prediction": mask}, scan)
        layers = overlay_layers(case, labels)
        pictures = [
            Image.open(io.BytesIO(png)) for png in (layers.base, *dict(layers.masks).values())
        ]
        assert len({picture.size for picture in pictures}) == 1
        assert [picture.mode for picture in pictures] == ["RGB", "RGBA", "RGBA"]
        lines, filled = (np.asarray(picture)[..., 3] for picture in pictures[1:])
        assert 0 < np.count_nonzero(lines) < np.count_nonzero(filled)
        assert bool(np.asarray(pictures[0]).any()) == (scan is not None)


def test_tables_for_papers() -> None:
    heads, rows = ["label", "Dice"], [["a|b_c %", "0.9"]]
    assert markdown_table(heads, rows).splitlines() == [
        "| label | Dice |", "| :-- | --: |", r"| a\|b\_c % | 0.9 |",
    ]  # fmt: skip
    text = latex_table(heads, rows, caption="50 % {x}")
    assert r"a|b\_c \% & 0.9 \\" in text
    assert r"\caption{50 \% \{x\}}" in text
    assert r"\begin{tabular}{lr}" in text
