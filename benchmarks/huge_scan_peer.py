"""The peer's side of ``huge_scan.py classes``; runs in its environment, without medseg.

    python benchmarks/huge_scan_peer.py INPUT.npy OUTPUT.npy CLASSES PATCH I J K

nnU-Net's own sliding window over a preprocessed scan, then its own export to (I, J, K).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate

SPACING_MM = (0.8, 0.8, 1.0)
WORKING_MM = 1.5
AIR_HU, STEP_HU = -1000.0, 20.0


class Nearest(nn.Module):
    """Logits (N, classes, ...) from intensities: 0 where they are a class's own, down to -10."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        own = (AIR_HU + STEP_HU * torch.arange(classes)) / 1000
        self.register_buffer("own", own.view(1, -1, 1, 1, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        """(N, 1, ...) to (N, classes, ...)."""
        coarse = avg_pool3d(tiles, 4)
        scores = (4000 / STEP_HU * (coarse - self.own).abs()).neg().clamp(min=-10)
        return interpolate(scores, scale_factor=4, mode="trilinear", align_corners=False)


def status_mb(name: str) -> float:
    """A field of this process's status, in MB: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return math.nan


def main() -> None:
    """Run it and print the peak as JSON."""
    from functools import partial
    from time import perf_counter
    from types import SimpleNamespace

    import numpy as np
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    source, result, *numbers = sys.argv[1:]
    classes, patch, *shape = (int(number) for number in numbers)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network = Nearest(classes)
    names = {"background": 0} | {f"organ {value}": value for value in range(1, classes)}
    labels = LabelManager(names, None)
    resample = partial(
        resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None
    )
    settings = SimpleNamespace(
        patch_size=[patch] * 3, spacing=[WORKING_MM] * 3, resampling_fn_probabilities=resample
    )
    plans = SimpleNamespace(transpose_forward=[0, 1, 2], transpose_backward=[0, 1, 2])
    predictor.label_manager, predictor.configuration_manager = labels, settings
    whole = {
        "spacing": list(SPACING_MM),
        "shape_after_cropping_and_before_resampling": shape,
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, side] for side in shape],
    }
    before, started = status_mb("VmRSS"), perf_counter()
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.load(source)))
    mask = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, settings, labels, whole, num_threads_torch=torch.get_num_threads()
    )
    took, peak = perf_counter() - started, status_mb("VmHWM")
    np.save(result, mask)
    print(json.dumps({"imports_mb": before, "peak_mb": peak, "seconds": took}))


if __name__ == "__main__":
    main()
