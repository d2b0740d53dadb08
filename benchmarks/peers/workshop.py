"""The folders of a kind, its phantoms, and nnU-Net's preprocessing of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from kinds import KINDS, WIDE, Kind, dataset_of
from phantoms import phantom, write

TRAINING, HELD_OUT = 8, 3
ENDING = ".nii.gz"
ALL_KINDS = {**KINDS, **WIDE}


class Workshop:
    """The folders of one kind, and nnU-Net's view of them."""

    def __init__(self, root: Path, name: str, kind: Kind) -> None:
        self.root, self.name, self.kind = root, name, kind
        self.dataset = f"Dataset{list(ALL_KINDS).index(name) + 1:03d}_{name}"
        self.raw = root / "raw" / self.dataset
        self.preprocessed = root / "preprocessed" / self.dataset
        self.results = root / "results" / self.dataset
        os.environ.update(
            nnUNet_raw=str(root / "raw"), nnUNet_preprocessed=str(root / "preprocessed"),
            nnUNet_results=str(root / "results"), nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1",
        )  # fmt: skip

    def cases(self) -> list[str]:
        """Names of the training cases."""
        return [f"case_{number:03d}" for number in range(TRAINING)]

    def files(self, folder: Path, case: str) -> list[str]:
        """The files of a case's channels."""
        return [str(folder / f"{case}_{c:04d}{ENDING}") for c in range(len(self.kind.channels))]

    def trained(self, stage: str) -> Path:
        """nnU-Net's folder of a trained configuration."""
        return self.results / f"nnUNetTrainer__nnUNetPlans__{stage}"


def write_phantoms(shop: Workshop) -> None:
    """Training cases in nnU-Net's raw layout, held-out ones in ``images`` and ``truth``."""
    for number in range(TRAINING + HELD_OUT):
        seed = 1000 * list(ALL_KINDS).index(shop.name) + number
        images, mask, affine = phantom(shop.kind.look, seed, labels=shop.kind.painted)
        trains = number < TRAINING
        name = f"case_{number:03d}" if trains else f"held_{number - TRAINING:03d}"
        folder = shop.raw / "imagesTr" if trains else shop.root / "images"
        for path, image in zip(shop.files(folder, name), images, strict=True):
            write(Path(path), image, affine)
        write((shop.raw / "labelsTr" if trains else shop.root / "truth") / f"{name}{ENDING}",
              mask, affine)  # fmt: skip
    save(shop.raw / "dataset.json", dataset_of(shop.kind, TRAINING))


def save(path: Path, content: Any) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _reader(kind: Kind) -> Any:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(kind.reader)


def intensities_of(shop: Workshop) -> dict[str, dict[str, float]]:
    """Statistics of the foreground by nnU-Net's fingerprint extractor, one set a channel."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )

    samples: list[list[np.ndarray]] = [[] for _ in shop.kind.channels]
    for case in shop.cases():
        _, _, values, _, _ = DatasetFingerprintExtractor.analyze_case(
            shop.files(shop.raw / "imagesTr", case),
            str(shop.raw / "labelsTr" / f"{case}{ENDING}"), _reader(shop.kind), 5000,
        )  # fmt: skip
        for channel, some in zip(samples, values, strict=True):
            channel.append(some)
    statistics = {}
    for number, channel in enumerate(samples):
        found = np.concatenate(channel).astype(float)
        low, high = np.percentile(found, [0.5, 99.5])
        statistics[str(number)] = {
            "max": found.max(), "mean": found.mean(), "median": float(np.median(found)),
            "min": found.min(), "percentile_00_5": low, "percentile_99_5": high,
            "std": found.std(),
        }  # fmt: skip
    return {n: {k: float(v) for k, v in one.items()} for n, one in statistics.items()}


def preprocess(shop: Workshop, plans: dict[str, Any]) -> None:
    """Every configuration's training cases by nnU-Net's preprocessor, in this process."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    for stage in shop.kind.stages:
        configuration = manager.get_configuration(stage)
        preprocessor = configuration.preprocessor_class(verbose=False)
        folder = shop.preprocessed / configuration.data_identifier
        folder.mkdir(parents=True, exist_ok=True)
        for case in shop.cases():
            preprocessor.run_case_save(
                str(folder / case), shop.files(shop.raw / "imagesTr", case),
                str(shop.raw / "labelsTr" / f"{case}{ENDING}"), manager, configuration,
                str(shop.raw / "dataset.json"),
            )  # fmt: skip
    save(shop.preprocessed / "nnUNetPlans.json", plans)
    save(shop.preprocessed / "dataset_fingerprint.json", {})
    cases = shop.cases()
    save(shop.preprocessed / "splits_final.json", [{"train": cases, "val": cases[-2:]}] * 5)
