"""Keep small models of nnU-Net, a phantom and nnU-Net's mask of it for the tests.

    python benchmarks/peers/golden.py OUT tests/golden/nnunet      (in nnU-Net's environment)

OUT is what ``train_nnunet.py`` wrote. Of each kind the model folders are kept with checkpoints
that hold what a prediction needs (no state of the optimiser, no log), one held-out phantom and
the mask that ``nnUNetPredictor`` made of it with the full checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

_KEPT = (
    "network_weights", "current_epoch", "init_args", "trainer_name",
    "inference_allowed_mirroring_axes",
)  # fmt: skip
_CASE = "held_000"


def keep_model(source: Path, target: Path) -> None:
    """Copy a model folder, its checkpoints without what only training needs."""
    target.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        content = json.loads((source / name).read_text(encoding="utf-8"))
        (target / name).write_text(json.dumps(content), encoding="utf-8")
    for path in sorted(source.glob("fold_*/checkpoint_final.pth")):
        full = torch.load(path, map_location="cpu", weights_only=False)
        (target / path.parent.name).mkdir()
        kept = {key: full[key] for key in _KEPT}
        torch.save(kept, target / path.parent.name / path.name)


def keep_kind(source: Path, target: Path) -> None:
    """Copy the models, one phantom and its mask of a kind."""
    for model in sorted((source / "results").glob("*/*__*__*")):
        keep_model(model, target / model.name)
    for image in sorted((source / "images").glob(f"{_CASE}_*.nii.gz")):
        shutil.copyfile(image, target / image.name.replace(_CASE, "case"))
    shutil.copyfile(source / "predictions" / f"{_CASE}.nii.gz", target / "expected.nii.gz")


def main() -> None:
    """Keep every kind that was trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="what train_nnunet.py wrote")
    parser.add_argument("golden", type=Path)
    parser.add_argument("--kinds", nargs="+", required=True)
    options = parser.parse_args()
    for name in options.kinds:
        shutil.rmtree(options.golden / name, ignore_errors=True)
        keep_kind(options.out / name, options.golden / name)
    size = sum(path.stat().st_size for path in options.golden.rglob("*") if path.is_file())
    print(f"{options.golden}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
