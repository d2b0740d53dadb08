"""One door for datasets: the layout is recognised by what lies in the folder."""

from __future__ import annotations

from pathlib import Path

from medseg.core.errors import DatasetError
from medseg.datasets.bids import looks_like_bids, read_bids
from medseg.datasets.dataset import Dataset, listing
from medseg.datasets.description import read_json
from medseg.datasets.folders import find_pair, read_folders
from medseg.datasets.msd import read_msd
from medseg.datasets.nnunet import looks_like_nnunet, read_nnunet
from medseg.datasets.organs import looks_like_organs, read_organs
from medseg.datasets.scheme import without_ignore
from medseg.datasets.table import TABLE_SUFFIXES, read_table

LAYOUTS = (
    "a Decathlon or nnU-Net folder (dataset.json, imagesTr, labelsTr), a table (CSV, TSV, JSON), "
    "folders images and labels, BIDS derivatives, or a folder per case with a mask per organ"
)
_TABLE_NAMES = tuple(
    f"{stem}{suffix}" for stem in ("dataset", "cases") for suffix in TABLE_SUFFIXES
)


def open_dataset(path: str | Path, *, lenient: bool = False) -> Dataset:
    """Open a dataset of any layout; voxels are not read unless names must be found in them.

    Args:
        path: A folder, a table, or a ``dataset.json``.
        lenient: Take cases whose files are missing too, for a check that tells of them.

    Raises:
        DatasetError: It is no dataset, or something in its description is missing or malformed.
    """
    return without_ignore(_opened(Path(path), lenient=lenient))


def _opened(path: Path, *, lenient: bool) -> Dataset:
    if path.is_file():
        return _open_file(path, lenient=lenient)
    if (path / "dataset.json").is_file():
        return _open_described(path, lenient=lenient)
    table = next((path / name for name in _TABLE_NAMES if (path / name).is_file()), None)
    if table is not None:
        return read_table(table, lenient=lenient)
    if find_pair(path) is not None:
        return read_folders(path, lenient=lenient)
    if path.is_dir() and looks_like_bids(path):
        return read_bids(path, lenient=lenient)
    if looks_like_organs(path):
        return read_organs(path, lenient=lenient)
    raise DatasetError(
        str(path), expected=LAYOUTS, got=_what_is_there(path), cure="Give the dataset's top folder."
    )


def _open_file(path: Path, *, lenient: bool) -> Dataset:
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DatasetError(str(path), expected=LAYOUTS, got="a file of another kind")
    if path.name == "dataset.json":
        return _open_described(path.parent, lenient=lenient)
    return read_table(path, lenient=lenient)


def _open_described(folder: Path, *, lenient: bool) -> Dataset:
    raw = read_json(folder / "dataset.json")
    if isinstance(raw, dict) and "training" not in raw:
        if isinstance(raw.get("cases"), list):
            return read_table(folder / "dataset.json", lenient=lenient)
        if not (folder / "imagesTr").is_dir() and find_pair(folder) is not None:
            return read_folders(folder, lenient=lenient)
    if isinstance(raw, dict) and looks_like_nnunet(folder, raw):
        return read_nnunet(folder, lenient=lenient)
    return read_msd(folder, lenient=lenient)


def _what_is_there(path: Path) -> str:
    if not path.is_dir():
        return "no such file or folder"
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    return f"a folder with {listing(names)}" if names else "an empty folder"
