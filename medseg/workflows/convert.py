"""Write a dataset in another layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.datasets.open import open_dataset
from medseg.datasets.write import write_dataset


def convert(
    dataset: str | Path,
    out: str | Path,
    *,
    to: str,
    link: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """Write a dataset of any layout as ``"msd"``, ``"nnunet"`` or ``"table"``.

    Args:
        dataset: A folder or a table.
        out: A new folder; it appears whole or not at all, and the source is not touched.
        to: The layout to write.
        link: Link to the source's files instead of copying them.
        progress: Called with (done, total, case id).

    Returns:
        ``{"out": path, "from": layout, "to": layout, "cases": n, "copied": files,
        "rewritten": files, "renumbered": {old: new}}``.

    Raises:
        DatasetError: The source is no dataset, or does not hold together.
        InputError: The layout is unknown, or ``out`` is not empty.
        OutputError: ``out`` cannot be written.
    """
    source = open_dataset(dataset)
    written = write_dataset(source, Path(out), layout=to, link=link, progress=progress)
    return {
        "out": str(written.folder),
        "from": source.layout,
        "to": to,
        "cases": len(source.cases),
        "copied": written.copied,
        "rewritten": written.rewritten,
        "renumbered": {str(old): new for old, new in written.renumbered.items()},
    }
