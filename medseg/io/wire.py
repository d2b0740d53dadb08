"""Requests to the worker process as JSON: plain values, and a fixed table of what else may go.

Nothing here names code: a class is looked up in the table, and gets its fields.
"""

from __future__ import annotations

import json
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.labels import LabelSet

# Loaded when they are met: most scans are no DICOM.
_CLASSES = {
    "Geometry": "medseg.core.geometry",
    "SeriesInfo": "medseg.io.dicom_series",
    "Stack": "medseg.io.dicom_geometry",
    "Slice": "medseg.io.dicom_records",
    "PixelLayout": "medseg.io.dicom_records",
    "Part": "medseg.io.dicom_parts",
}


def to_line(value: Any) -> bytes:
    """A value as one line of JSON.

    Raises:
        TypeError: It holds what is not in the table.
    """
    return json.dumps(_plain(value)).encode() + b"\n"


def from_line(line: bytes) -> Any:
    """The value that :func:`to_line` was given, tuples and paths as such.

    Raises:
        ValueError, KeyError, TypeError: The line was not made by it.
    """
    return _value(json.loads(line))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    kind = type(value).__name__
    if isinstance(value, Path):
        return {"Path": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_plain(one) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[_plain(key), _plain(one)] for key, one in value.items()]}
    if isinstance(value, np.ndarray):
        return {"array": [str(value.dtype), value.tolist()]}
    if isinstance(value, LabelSet):
        return {"LabelSet": value.model_dump(mode="json")}
    if _CLASSES.get(kind) == type(value).__module__:
        return {kind: {own.name: _plain(getattr(value, own.name)) for own in fields(value)}}
    raise TypeError(f"no {type(value).__module__}.{kind} can be sent to the worker")


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(one) for one in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "Path":
        return Path(content)
    if kind == "tuple":
        return tuple(_value(one) for one in content)
    if kind == "dict":
        return {_value(key): _value(one) for key, one in content}
    if kind == "array":
        return np.array(content[1], dtype=content[0])
    if kind == "LabelSet":
        return LabelSet.model_validate(content)
    made = getattr(import_module(_CLASSES[kind]), kind)
    return made(**{name: _value(one) for name, one in content.items()})
