"""Write a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.core.errors import InputError, SettingsError

FORMATS = ("onnx",)


def export(model: str | Path, out: str | Path, *, to: str = "onnx") -> dict[str, Any]:
    """Write the networks of a model as ONNX, each compared with torch before it is written.

    The file takes tiles (N, C, I, J, K) and gives logits (N, classes, I, J, K). What comes
    before and after (resampling, normalisation, the sliding window) is the reader's work: the
    plan, as JSON, and the hash of the package stand in the file's metadata.

    Args:
        model: A package, or a run folder that holds it as ``model/``.
        out: A name ending in ``.onnx``. A model of several members gives one file each:
            ``name_0.onnx``, ``name_1.onnx`` and so on.
        to: ``"onnx"``.

    Returns:
        ``{"files": [path], "checked_with": program, "difference": share, "equal": share}``: the
        largest difference of logits as a share of their range, and the share of voxels whose
        best class is that of torch.

    Raises:
        SettingsError: There is no such format.
        InputError: The name has another suffix, the model is a cascade, or ONNX cannot hold
            the network.
        PackageError: The model is damaged.
        MissingPackageError: ``onnx`` is not installed, or nothing that runs it.
        OutputError: A file cannot be written.
    """
    if to not in FORMATS:
        raise SettingsError("--to", expected=" or ".join(FORMATS), got=repr(to))
    out = Path(out)
    if out.suffix.lower() != ".onnx" or out.is_dir():
        got = "a folder" if out.is_dir() else out.name
        raise InputError(str(out), expected="a file name ending in .onnx", got=got)
    # Late: they bring torch.
    from medseg.inference.onnx_file import write_onnx
    from medseg.workflows.api import package_of

    package = package_of(model)
    if package.previous is not None:
        raise InputError(
            str(model),
            expected="a model of one stage",
            got="a cascade, whose second network sees the labels of the first",
            cure="Use medseg predict. The first stage alone lies in the package as 'previous'.",
        )
    networks = package.networks()
    paths = _paths(out, len(networks))
    found = []
    for member, (path, network) in enumerate(zip(paths, networks, strict=True)):
        facts = {
            "medseg_version": __version__,
            "package_sha256": package.sha256,
            "member": f"{member} of {len(networks)}",
            "plan": package.plan.to_json(),
            "licence": package.model.licence,
            "use": "research only",
        }
        found.append(write_onnx(path, network, package.plan, metadata=facts))
    return {
        "files": [str(path) for path in paths],
        "checked_with": found[0][1],
        "difference": max(close.difference for close, _ in found),
        "equal": min(close.equal for close, _ in found),
    }


def _paths(out: Path, members: int) -> list[Path]:
    if members == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{member}{out.suffix}") for member in range(members)]
