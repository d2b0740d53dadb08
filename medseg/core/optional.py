"""Import optional packages late, with an error that names the extra to install."""

from importlib import import_module
from types import ModuleType

from medseg.core.errors import MissingPackageError


def require(package: str, *, extra: str, feature: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: Import name, for example ``"openvino"``.
        extra: The extra of medseg that brings it.
        feature: What the user asked for, for the message.

    Raises:
        MissingPackageError: The package is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            feature,
            expected=f"the package '{package}'",
            got="no such package in this environment",
            cure=f"Run: pip install 'medseg[{extra}]'",
        ) from error
