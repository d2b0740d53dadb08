"""Label names and colours inside a NIfTI header, as Connectome Workbench keeps them.

The header extension with code 30 (NIFTI_ECODE_CARET) holds a ``CaretExtension`` XML text
with a ``LabelTable``; Workbench, FSLeyes and TotalSegmentator's readers know it.
"""

from __future__ import annotations

import logging
import re
from xml.etree import ElementTree

from pydantic import ValidationError

from medseg.core.labels import Label, LabelSet

ECODE_CARET = 30

_LOG = logging.getLogger(__name__)
# What XML 1.0 does not allow, even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_caret_xml(labels: LabelSet) -> bytes:
    """Write the names and colours of a label set as CaretExtension XML (UTF-8)."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    rows: list[tuple[int, str, tuple[int, int, int], int]] = [(0, "???", (255, 255, 255), 0)]
    rows += [(label.value, label.name, label.colour, 1) for label in labels.labels]
    for value, name, colour, alpha in rows:
        red, green, blue = (f"{part / 255:.6f}" for part in colour)
        row = ElementTree.SubElement(
            table, "Label", Key=str(value), Red=red, Green=green, Blue=blue, Alpha=str(alpha)
        )
        row.text = _FORBIDDEN.sub("\ufffd", name)
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return bytes(ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True))


def from_caret_xml(content: bytes) -> LabelSet | None:
    """Read a label set from CaretExtension XML; None when it holds none that can be used."""
    text = content.rstrip(b"\0")
    # Names are an ornament: no entity expansion is worth the risk for them.
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        return None
    try:
        table = ElementTree.fromstring(text).find(".//LabelTable")
        rows = [] if table is None else list(table.iter("Label"))
        labels = tuple(_label(row) for row in rows if int(row.attrib["Key"]) != 0)
        return LabelSet(labels=labels) if labels else None
    except (ElementTree.ParseError, KeyError, ValueError, ValidationError):
        _LOG.warning("the label table in the NIfTI header extension cannot be read; names are lost")
        return None


def _label(row: ElementTree.Element) -> Label:
    red, green, blue = (round(float(row.attrib[key]) * 255) for key in ("Red", "Green", "Blue"))
    value = int(row.attrib["Key"])
    name = "".join(row.itertext()).strip() or f"label {value}"
    return Label(value=value, name=name, colour=(red, green, blue), sources=(value,))
