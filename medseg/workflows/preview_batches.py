"""The batches that a network would see, as a picture: to judge a plan before it is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.core.errors import SettingsError
from medseg.core.plan import Plan
from medseg.datasets.dataset import Split
from medseg.io.atomic import write_bytes
from medseg.report.batches import Patch, draw_batches
from medseg.report.previews import png_of
from medseg.training.cache import build_cache
from medseg.training.loader import Batches
from medseg.workflows.plan import decide, look_into, settled, splits_of
from medseg.workflows.run import Progress

if TYPE_CHECKING:
    from medseg.transforms.augment import Variation

_CASES = 8
_SAMPLES_IN_A_ROW = 4


def preview_batches(
    dataset: str | Path,
    out: str | Path,
    *,
    batches: int = 4,
    progress: Progress = lambda phase, done, total, note: None,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> dict[str, Any]:
    """Draw the first batches of a training, with what was done to each sample below.

    Eight training cases are looked into, unless a plan is given, and preprocessed into a
    folder that goes away again; what is drawn is a function of plan and seed.

    Args:
        dataset: As for ``train``.
        out: A name ending in ``.png``.
        batches: How many.
        progress: Called with (phase, done, total, note).
        stop: Asked after each case.
        **settings: As for ``train``: ``plan_file``, ``fold``, ``labels``, ``seed``, ``set`` ...

    Returns:
        ``{"file": path, "batches": number, "samples": [what was done to each]}``.

    Raises:
        SettingsError: ``out`` is no picture, or a setting does not fit.
    """
    path = Path(out)
    if path.suffix.lower() != ".png":
        raise SettingsError("--out", expected="a name ending in .png", got=str(out))
    on_cpu = {**settings, "device": "cpu"}
    run = settled(dataset, path.parent, on_cpu, progress=progress, stop=stop)
    learn = next(iter(splits_of(run).values())).train
    few = learn[:: max(1, len(learn) // _CASES)][:_CASES]
    fingerprint = look_into(run, {"some": Split(few, ())})
    plan = decide(run, fingerprint, changes=run.settings.plan_changes(), folds_left=1)
    with tempfile.TemporaryDirectory() as folder:
        cases, report = run.dataset.select(few), run.phase("preprocess")
        cached = build_cache(Path(folder), cases, plan, progress=report)
        source = Batches(cached, plan, seed=run.settings.seed, device=run.device)
        drawn = [_patches(source, plan, step) for step in range(batches)]
    sides = [side or 1.0 for side in plan.spacing_mm]
    sheet = draw_batches(
        [batch[:_SAMPLES_IN_A_ROW] for batch in drawn],
        plan.labels,
        spacing_mm=(sides[0], sides[1], sides[2]),
        title=f"{run.dataset.name}: patches of {' x '.join(map(str, plan.patch_size))}",
    )
    write_bytes(path, png_of(sheet))
    notes = [patch.note for batch in drawn for patch in batch]
    return {"file": str(path), "batches": batches, "samples": notes}


def _patches(source: Batches, plan: Plan, step: int) -> list[Patch]:
    images, targets = source.batch(step)
    indices = np.maximum(targets.labels.numpy(), 0)
    return [
        Patch(image[0].numpy(), plan.scheme.painted(classes), described(draw.variation))
        for image, classes, draw in zip(images, indices, source.draw(step), strict=True)
    ]


def described(variation: Variation) -> str:
    """What a variation does to its sample, in words."""
    told = []
    turned = replace(variation, elastic=None)
    if not turned.on_grid:
        size = abs(float(np.linalg.det(variation.matrix))) ** (-1 / 3)
        told.append(f"turned, {size:.2f} times as large")
    told += [f"mirrored along {axis}" for axis in variation.mirrored]
    present = (
        (variation.elastic is not None, "elastic"),
        (variation.bias is not None, "bias field"),
        (any(lines.strength for lines in variation.lines), "ghosts"),
        (any(lines.shift for lines in variation.lines), "motion"),
        (variation.spike is not None, "spike"),
        (bool(variation.boxes), "cut-out"),
    )
    told += [name for there, name in present if there]
    for name, neutral in (
        ("blur_sigma", 0), ("noise_std", 0), ("gain", 1), ("contrast", 1), ("coarseness", 1),
        ("gamma", 1), ("inverse_gamma", 1),
    ):  # fmt: skip
        value = getattr(variation, name)
        if value != neutral:
            told.append(f"{name.split('_')[0]} {value:.2f}")
    return ", ".join(told)
