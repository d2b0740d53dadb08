"""Models and results as people use them from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medseg.core.errors import PackageError
from medseg.inference.backends import check_backend
from medseg.inference.choice import Backends
from medseg.inference.device import choose_device
from medseg.inference.predictor import Predictor
from medseg.package.model_set import is_set, load_set
from medseg.package.nnunet import is_nnunet_folder, load_nnunet
from medseg.package.package import ModelPackage, load_package
from medseg.workflows.model import Model
from medseg.workflows.model_set import ModelSet
from medseg.workflows.result import Result

if TYPE_CHECKING:
    import torch

__all__ = ["Model", "Result", "load_model", "package_of"]


def load_model(path: str | Path, device: str = "auto", *, backend: str = "auto") -> Model:
    """Load a model package; its checksums are verified and no code of it runs.

    Args:
        path: The package, a set of packages, a folder of nnU-Net v2, or a run folder that holds
            the package as ``model/``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        backend: What runs the network: ``"torch"`` (the reference), ``"openvino"`` (on a CPU),
            ``"compile"`` (torch.compile), or ``"auto"``: on a CPU whichever of torch and
            OpenVINO is quicker, measured once per model and machine, as soon as a scan has
            work enough to pay for it; on CUDA torch. ``result.provenance`` says which it was.

    Raises:
        PackageError: It is damaged, not a package, or written by a newer medseg.
        ResourceError: This machine has no such device, or the backend does not run on it.
        SettingsError: There is no such backend.
        MissingPackageError: The backend is not installed.
    """
    check_backend(backend)
    chosen, folder = choose_device(device), _folder_of(path)
    if not is_set(folder):
        return _model_of(package_of(folder), chosen, backend)
    found = load_set(folder)
    members = [_model_of(package, chosen, backend) for package in found.members]
    return ModelSet(members, found.file, sha256=found.sha256, device=chosen)


def _model_of(package: ModelPackage, device: torch.device, backend: str) -> Model:
    earlier = package.previous
    previous = None if earlier is None else _model_of(earlier, device, backend)
    plan, sha256 = package.plan, package.sha256
    backends = Backends(backend, package.networks(), plan, device, identity=sha256)
    predictor = Predictor(backends.reference, plan, device)
    return Model(
        predictor, sha256=sha256, backends=backends, previous=previous, profile=package.profile
    )


def package_of(path: str | Path) -> ModelPackage:
    """Read the package that a path means: the package itself, or the run folder that holds it.

    A folder of a trained nnU-Net v2 model counts as a package, too.

    Raises:
        PackageError: It is damaged, not a package, or written by a newer medseg.
    """
    folder = _folder_of(path)
    if is_set(folder):
        raise PackageError(
            str(folder),
            expected="a single model",
            got="a set of models",
            cure="Give one of the packages in its folder 'members'.",
        )
    return load_nnunet(folder) if is_nnunet_folder(folder) else load_package(folder)


def _folder_of(path: str | Path) -> Path:
    folder = Path(path)
    inner = folder / "model"
    held = not (folder / "checksums").is_file() and (inner / "checksums").is_file()
    return inner if held else folder
