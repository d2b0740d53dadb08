"""One tree of errors. Each message says what was expected, what came, and the cure.

::

    MedsegError
    ├── InputError            what the user gave cannot be used (exit code 2)
    │   ├── FileError         a file is missing, truncated, or not what its name says
    │   ├── GeometryError     grids that disagree, an affine that cannot be inverted
    │   ├── LabelError        label values or names that are unknown, missing or doubled
    │   ├── DatasetError      a dataset that does not hold together
    │   ├── SettingsError     an unknown key, a value out of range
    │   └── PackageError      a model package that is damaged, foreign or too new
    ├── OutputError           a result cannot be written (disk full, no permission)
    ├── ResourceError         not enough memory, or the device that was asked for is not there
    ├── MissingPackageError   an optional package is not installed
    └── Interrupted           the user stopped the work; what was done is kept
"""


class MedsegError(Exception):
    """Base of every error that medseg raises on purpose.

    Args:
        what: The thing that is wrong, named as the user knows it (a file, a key, a label).
        expected: What would have been right.
        got: What was found.
        cure: What the user can do about it, as a sentence.
    """

    def __init__(self, what: str, *, expected: str = "", got: str = "", cure: str = "") -> None:
        self.what, self.expected, self.got, self.cure = what, expected, got, cure
        found = ", ".join(
            part for part in (expected and f"expected {expected}", got and f"got {got}") if part
        )
        message = f"{what}: {found}" if found else what
        if cure:
            message = f"{message.rstrip('.')}. {cure}"
        # One line, always: logs and terminals then show the whole error or none of it.
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by Exception's own pickling between processes.
        return (_rebuild, (type(self), self.what, self.expected, self.got, self.cure))


def _rebuild(kind: type[MedsegError], what: str, expected: str, got: str, cure: str) -> MedsegError:
    return kind(what, expected=expected, got=got, cure=cure)


class InputError(MedsegError):
    """What the user gave cannot be used."""


class FileError(InputError):
    """A file is missing, truncated, unreadable, or not what its name says."""


class GeometryError(InputError):
    """Grids disagree, or an affine describes no volume."""


class LabelError(InputError):
    """Label values or names are unknown, missing or doubled."""


class DatasetError(InputError):
    """A dataset does not hold together."""


class SettingsError(InputError):
    """A setting is unknown or out of range."""


class PackageError(InputError):
    """A model package is damaged, foreign, or written by a newer medseg."""


class OutputError(MedsegError):
    """A result cannot be written."""


class ResourceError(MedsegError):
    """Memory or a device is not there."""


class MissingPackageError(MedsegError):
    """An optional package is not installed."""


class Interrupted(MedsegError):  # noqa: N818 - it is a wish, not a fault
    """The user stopped the work; its state is saved."""
