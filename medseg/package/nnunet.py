"""Models of nnU-Net v2: a folder with ``plans.json``, ``dataset.json`` and ``fold_*``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medseg import __version__
from medseg.core.errors import PackageError
from medseg.package.nnunet_checkpoint import Checkpoint, read_checkpoint
from medseg.package.nnunet_network import refuse
from medseg.package.nnunet_plan import configuration_named, plan_of
from medseg.package.nnunet_weights import renamed
from medseg.package.package import ModelFile, ModelPackage

Which = Literal["final", "best"]
_JSON_BYTES = 64 << 20
# Trainers that change how weights are learned, but neither the network nor its input.
_TRAINER = re.compile(
    r"nnUNetTrainer("
    r"|_\d+epochs?(_NoMirroring)?"
    r"|NoMirroring|_onlyMirror01(_1500ep|_DASegOrd0|_DA5)?"
    r"|NoDeepSupervision|NoDA|_noDummy2DDA|DA5(ord0|Segord0|_10epochs)?"
    r"|_DASegOrd0(_NoMirroring)?"
    r"|(Vanilla)?Adam(1en3|3en4)?|Adan(1en1|1en3|3en4|CosAnneal)?|CosAnneal|_warmup"
    r"|DiceLoss|DiceCELoss_noSmooth|CELoss(_5epochs)?|Topk10Loss(LS01)?|DiceTopK10Loss"
    r"|_probabilisticOversampling(_\d+)?|Benchmark_5epochs(_noDataLoading)?"
    r")"
)


def is_nnunet_folder(path: str | Path) -> bool:
    """Whether a folder looks like a trained model of nnU-Net v2 (nothing is verified)."""
    folder = Path(path)
    try:
        plain = all((folder / name).is_file() for name in ("plans.json", "dataset.json"))
        return plain and any(part.is_dir() for part in folder.glob("fold_*"))
    except OSError:
        return False


def load_nnunet(
    path: str | Path,
    *,
    folds: str | Sequence[str] | None = None,
    checkpoint: Which = "final",
    previous: str | Path | None = None,
) -> ModelPackage:
    """Read a trained model of nnU-Net v2 as a package; no code of it runs.

    Args:
        path: The folder with ``plans.json``, ``dataset.json`` and ``fold_*``.
        folds: ``"0,1,2"``, ``["0", "1"]`` or ``"all"`` (the model trained on all cases); None
            takes every numbered fold that is there, else ``all``.
        checkpoint: ``"final"`` or ``"best"``.
        previous: Of a cascade, the folder of its first stage; None looks for it beside
            ``path``, where nnU-Net puts it.

    Raises:
        PackageError: A file is missing, damaged or holds more than data; or the model is not
            one of unmodified nnU-Net v2.
    """
    folder = Path(path)
    plans, dataset = (_read_json(folder / name) for name in ("plans.json", "dataset.json"))
    chosen = _folds(folder, folds, checkpoint)
    files = [folder / f"fold_{fold}" / f"checkpoint_{checkpoint}.pth" for fold in chosen]
    found = [read_checkpoint(file) for file in files]
    _agree(found, files)
    plan = plan_of(
        plans,
        dataset,
        found[0].configuration,
        mirror_axes=found[0].mirror_axes,
        source=str(folder),
    )
    members = [
        renamed(one.weights, plan.network, source=str(file))
        for one, file in zip(found, files, strict=True)
    ]
    model = ModelFile(
        medseg_version=__version__,
        weights=_weight_names(len(members)),
        plan=plan,
        training={
            "source": "nnU-Net v2",
            "trainer": found[0].trainer,
            "configuration": found[0].configuration,
            "folds": list(chosen),
            "checkpoint": checkpoint,
        },
        licence=str(dataset.get("licence") or dataset.get("license") or "")[:200],
    )
    stage = configuration_named(plans, found[0].configuration, source=str(folder))
    earlier = None
    if plan.cascade_labels:
        first = _first_stage(folder, str(stage["previous_stage"]), previous)
        earlier = load_nnunet(first, folds=folds, checkpoint=checkpoint)
    identity = _identity(folder, files, earlier)
    package = ModelPackage(model, tuple(members), identity, earlier)
    package.networks()  # the weights fit, or an error says which do not
    return package


def _first_stage(folder: Path, configuration: str, given: str | Path | None) -> Path:
    """Folder of a cascade's first stage: ``TRAINER__PLANS__CONFIGURATION``."""
    stem = folder.resolve().name.rpartition("__")[0]
    first = folder.resolve().parent / f"{stem}__{configuration}" if given is None else Path(given)
    if not is_nnunet_folder(first):
        raise PackageError(
            str(folder),
            expected=f"its first stage, the model of configuration '{configuration}'",
            got=f"none at {first}",
            cure="Give its folder with --previous.",
        )
    return first


def _weight_names(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("weights.safetensors",)
    return tuple(f"weights_{place}.safetensors" for place in range(count))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise PackageError(str(path), expected="at most 64 MB", got="a larger file")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PackageError(
            str(path),
            expected="a file of a trained nnU-Net v2 model",
            got=error.strerror or str(error),
            cure="Give the folder that holds plans.json, dataset.json and fold_*.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise PackageError(str(path), expected="JSON", got=str(error)) from error
    if not isinstance(raw, dict):
        raise PackageError(str(path), expected="a JSON object", got=type(raw).__name__)
    return raw


def _folds(folder: Path, folds: str | Sequence[str] | None, checkpoint: Which) -> tuple[str, ...]:
    there = sorted(
        part.parent.name.removeprefix("fold_")
        for part in folder.glob(f"fold_*/checkpoint_{checkpoint}.pth")
    )
    if folds is None:
        chosen = [fold for fold in there if fold.isdigit()] or there
    else:
        parts = folds.split(",") if isinstance(folds, str) else list(folds)
        chosen = list(dict.fromkeys(part.strip() for part in parts))
    missing = [fold for fold in chosen if fold not in there]
    if missing or not chosen:
        raise PackageError(
            str(folder),
            expected=f"fold_{missing[0] if missing else '0'}/checkpoint_{checkpoint}.pth",
            got=f"folds {', '.join(there) or 'none'} with such a checkpoint",
            cure="Choose with --folds and --checkpoint.",
        )
    return tuple(chosen)


def _agree(found: Sequence[Checkpoint], files: Sequence[Path]) -> None:
    for one, file in zip(found, files, strict=True):
        if not _TRAINER.fullmatch(one.trainer):
            raise refuse("trainer", one.trainer, ("nnUNetTrainer", "its plain variants"), str(file))
        for what in ("trainer", "configuration", "mirror_axes"):
            if getattr(one, what) != getattr(found[0], what):
                raise PackageError(
                    str(file),
                    expected=f"the {what.replace('_', ' ')} of the first fold",
                    got=f"{getattr(one, what)} against {getattr(found[0], what)}",
                )


def _identity(folder: Path, files: Sequence[Path], earlier: ModelPackage | None) -> str:
    """SHA-256 over what was read: the same files give the same."""
    lines = [] if earlier is None else [f"{earlier.sha256}  previous\n"]
    for file in (folder / "plans.json", folder / "dataset.json", *files):
        with file.open("rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {file.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
