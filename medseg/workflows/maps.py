"""What is written beside a mask when it is asked for: probabilities, entropy, disagreement."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import LabelError
from medseg.core.results import Prediction
from medseg.inference.predictor import Predictor
from medseg.inference.products import Products
from medseg.inference.volume import Volume
from medseg.io.nifti_slabs import write_nifti_map_slabs
from medseg.io.scratch import ScratchArray
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.restore import ArraySink
from medseg.transforms.winners import class_dtype

if TYPE_CHECKING:
    from torch import Tensor

# Values that are held at a time when a map is written.
_SLAB_VALUES = 1 << 23


@dataclass(frozen=True)
class Maps:
    """Volumes from 0 to 1 on the grid of a mask; on the disk, gone when they are closed.

    Attributes:
        products: Which.
        arrays: (I, J, K) of each, by its name.
    """

    products: Products
    arrays: Mapping[str, ScratchArray]

    @classmethod
    def empty(cls, products: Products, shape: tuple[int, int, int], folder: Path) -> Maps:
        """Make room for them.

        Args:
            products: Which.
            shape: (I, J, K) of the mask.
            folder: For the files, which have no names in it.

        Raises:
            OutputError: The folder has no room for them.
        """
        arrays: dict[str, ScratchArray] = {}
        for name in products.names:
            arrays[name] = ScratchArray(folder, shape, products.dtype, order=(2, 1, 0))
        return cls(products, arrays)

    def filled_by(
        self, predictor: Predictor, voxels: Tensor | Volume, record: RestoreRecord
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Run a model over a scan; the maps are then there.

        Args:
            predictor: The model.
            voxels: (C, I, J, K) on ``record.working``.
            record: From its preprocessing.

        Returns:
            Class indices (I, J, K) on ``record.target``, and what provenance is to say of it.

        Raises:
            ResourceError: It does not fit into memory.
        """
        sink = ArraySink(record.target.shape, class_dtype(len(predictor.plan.labels) + 1))
        run = predictor.stream(
            voxels, record, sink, products=self.products, product_sinks=self.arrays
        )
        return sink.array, run.facts

    def write(self, mask: Path, prediction: Prediction) -> list[Path]:
        """Write each as ``<mask>_<name>.nii.gz``, and give the scratch files back.

        Args:
            mask: Where the mask goes.
            prediction: For the placement.

        Raises:
            OutputError: They cannot be written.
        """
        byte = self.products.dtype == "uint8"
        kind = np.dtype(np.uint8 if byte else np.float32)
        shape = prediction.geometry.shape
        frame = replace(prediction, labels=np.broadcast_to(kind.type(0), shape))
        files = []
        for name, array in self.arrays.items():
            files.append(map_path(mask, name))
            slope = 1 / 255 if byte else 1.0
            write_nifti_map_slabs(files[-1], frame, _slabs(array, kind), slope=slope)
        self.close()
        return files

    def close(self) -> None:
        """Give the space on the disk back."""
        for array in self.arrays.values():
            array.close()


def map_path(mask: Path, name: str) -> Path:
    """``DIR/case.nii.gz`` and ``"probability liver"`` to ``DIR/case_probability_liver.nii.gz``."""
    stem = mask.name.removesuffix(".gz").removesuffix(".nii")
    return mask.with_name(f"{stem}_{_word(name)}.nii.gz")


def check_names(products: Products) -> None:
    """Refuse labels whose maps would have one file name.

    Raises:
        LabelError: With the names.
    """
    words = [_word(name).casefold() for name in products.names]
    twice = [n for n, word in zip(products.names, words, strict=True) if words.count(word) > 1]
    if twice:
        raise LabelError("--probabilities", expected="names that files can have", got=str(twice))


def _word(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _slabs(array: ScratchArray, kind: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    across, down, count = array.shape
    depth = max(1, _SLAB_VALUES // (across * down))
    for start in range(0, count, depth):
        box = slice(0, across), slice(0, down), slice(start, min(start + depth, count))
        yield array.read(box).astype(kind, copy=False)
