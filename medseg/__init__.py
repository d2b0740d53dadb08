"""medseg: train organ segmenters, segment scans with them, measure how good they are.

The names below are the whole public interface. They load on first use, so that
``import medseg`` costs no torch and no MONAI. For research use, not for diagnosis.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medseg.core.errors import MedsegError
    from medseg.core.geometry import Geometry
    from medseg.core.labels import Label, LabelSet
    from medseg.core.plan import Plan
    from medseg.core.results import Prediction
    from medseg.io.exchange import Scan
    from medseg.io.formats import read_scan
    from medseg.workflows.api import Model, Result, load_model
    from medseg.workflows.check import check
    from medseg.workflows.convert import convert
    from medseg.workflows.doctor import doctor
    from medseg.workflows.evaluate import evaluate
    from medseg.workflows.info import info
    from medseg.workflows.plan import plan
    from medseg.workflows.predict import predict
    from medseg.workflows.train import train

_HOMES = {
    "Geometry": "medseg.core.geometry",
    "Label": "medseg.core.labels",
    "LabelSet": "medseg.core.labels",
    "MedsegError": "medseg.core.errors",
    "Model": "medseg.workflows.api",
    "Plan": "medseg.core.plan",
    "Prediction": "medseg.core.results",
    "Result": "medseg.workflows.api",
    "Scan": "medseg.io.exchange",
    "check": "medseg.workflows.check",
    "convert": "medseg.workflows.convert",
    "doctor": "medseg.workflows.doctor",
    "evaluate": "medseg.workflows.evaluate",
    "info": "medseg.workflows.info",
    "load_model": "medseg.workflows.api",
    "plan": "medseg.workflows.plan",
    "predict": "medseg.workflows.predict",
    "read_scan": "medseg.io.formats",
    "train": "medseg.workflows.train",
}

__all__ = [
    "Geometry",
    "Label",
    "LabelSet",
    "MedsegError",
    "Model",
    "Plan",
    "Prediction",
    "Result",
    "Scan",
    "__version__",
    "check",
    "convert",
    "doctor",
    "evaluate",
    "info",
    "load_model",
    "plan",
    "predict",
    "read_scan",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name from its room the first time that it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'medseg' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
