"""A picture of training batches: what is drawn, and that it is what training would see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.cli.app import run
from medseg.core.labels import LabelSet
from medseg.report.batches import Patch, draw_batches
from medseg.transforms.augment import Lines, Spike, Variation
from medseg.workflows.preview_batches import described
from tests.phantoms import blobs, write_msd_dataset


def test_the_command_draws_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_msd_dataset(tmp_path / "data", cases=4), tmp_path / "x.png"
    command = ["preview", str(data), "--augmented", "--out", str(out), "--batches", "2", "--json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["batches"], len(told["samples"])) == (2, 4)
    first = np.asarray(Image.open(out))
    assert first.std() > 10
    assert run(command) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out)), first)
    assert run([*command, "--seed", "3"]) == 0
    again = np.asarray(Image.open(out))
    assert again.shape != first.shape or not np.array_equal(again, first)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "x.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--augmented", "--out", "folder"], "a name ending in .png"),
        (["masks", "--augmented"], "expected one dataset"),
        ([], "draw training batches of a dataset with --augmented"),
    ],
)
def test_what_does_not_fit_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["preview", str(write_msd_dataset(tmp_path, cases=2)), *arguments]) == 2
    assert words in " ".join(capfd.readouterr().err.split())


def test_labels_are_tinted_where_they_lie() -> None:
    labels = LabelSet.from_names({1: "low", 2: "high"})
    image, mask = blobs((24, 20, 16))
    patch = Patch(image.astype(np.float32), mask, "as drawn")
    sheet = np.asarray(
        draw_batches([[patch, patch]], labels, spacing_mm=(1.0, 2.0, 3.0), title="two")
    ).astype(int)
    # Only tints have a colour: grey has three equal numbers, and so has each panel.
    tinted = (sheet.max(axis=2) - sheet.min(axis=2)) > 40
    plain = np.asarray(
        draw_batches([[Patch(patch.image, mask * 0, "")] * 2], labels, spacing_mm=(1.0, 2.0, 3.0),
                     title="two")
    ).astype(int)  # fmt: skip
    assert 0.02 < tinted.mean() < 0.4
    assert ((plain.max(axis=2) - plain.min(axis=2)) > 40).sum() == 0
    flat = Patch(patch.image[:, :, :1], mask[:, :, :1], "")
    assert draw_batches([[flat]], labels, spacing_mm=(1.0, 1.0, 1.0), title="").width < 300


def test_variations_are_told_in_words() -> None:
    assert described(Variation()) == ""
    told = described(
        Variation(
            matrix=np.diag([-0.5, 0.5, 0.5]), mirrored=(0,), noise_std=0.1, gamma=1.2,
            lines=(Lines(0, strength=0.5),), spike=Spike((1, 0, 0), 0.0, 1.0),
        )
    )  # fmt: skip
    assert (
        told
        == "turned, 2.00 times as large, mirrored along 0, ghosts, spike, noise 0.10, gamma 1.20"
    )
