"""Findings of a check, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Literal

from medseg.core.errors import MedsegError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is, or looks, wrong.

    Attributes:
        kind: A short fixed name, for example ``"grid-shape"``.
        severity: ``"error"``: training would refuse it or learn what is wrong; ``"warning"``:
            someone should look at it; ``"note"``: good to know.
        case: The case; "" where the dataset as a whole is meant.
        expected: What would have been right.
        got: What was found.
        cure: What can be done about it, as a sentence.
        labels: Mask values that it is about; none where it is about all.
        others: Further cases that it is about.
    """

    kind: str
    severity: Severity
    case: str
    expected: str
    got: str
    cure: str = ""
    labels: tuple[int, ...] = ()
    others: tuple[str, ...] = ()

    @classmethod
    def of_error(cls, kind: str, case: str, error: MedsegError) -> Finding:
        """A finding that says what an error says."""
        # The file's name, not the whole path: the case is known.
        name = PurePath(error.what).name
        got = f"{name}: {error.got}" if error.got else name
        return cls(kind, "error", case, error.expected, got, error.cure)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"labels": list(self.labels), "others": list(self.others)}


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors first; within a severity by kind and case."""
    return tuple(
        sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind, f.case, f.got))
    )
