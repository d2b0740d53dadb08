"""Previews: scans and masks in, a picture of each and of all together out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from medseg.core.errors import SettingsError
from medseg.io.atomic import write_bytes
from medseg.io.guarded import GuardedReader
from medseg.report.previews import draw_montage, draw_preview, png_of
from medseg.workflows.mask_cases import (
    MaskCase,
    Progress,
    dataset_names,
    find_mask_cases,
    for_each,
    keep_inputs,
    read_mask_case,
)

# On one sheet; of more there are several.
_SHEET_CASES = 48
_MONTAGE_PX = 640


def preview(
    scans: str | Path,
    masks: str | Path,
    out: str | Path,
    *,
    montage: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw each case, see :mod:`medseg.report.previews`.

    Args:
        scans: A folder of scans, or one.
        masks: A folder of masks by the same case ids, or one.
        out: Of one case a name ending in ``.png``, else a folder for ``<case>.png``.
        montage: Of several cases also ``montage.png`` (``montage_2.png`` ...), 48 on a sheet.
        workers: Cases drawn at once; by default one per core.
        progress: Called with (done, total, case id).

    Returns:
        ``{"cases": {case id: path}, "montage": [paths], "failed": {case id: message}}``.

    Raises:
        InputError: Nothing can be paired, or all cases failed.
        OutputError: A picture cannot be written.
        SettingsError: ``out`` is a picture, and there are several cases.
    """
    out = Path(out)
    cases, names = find_mask_cases(masks, scans), dataset_names(masks)
    is_file = out.suffix.lower() == ".png"
    for case in cases:
        keep_inputs(out, *filter(None, (case.mask, case.scan)))
    if is_file and len(cases) > 1:
        raise SettingsError(f"--out {out}", expected=f"a folder for {len(cases)} cases",
                            got="one picture")  # fmt: skip
    small: dict[str, Image.Image] = {}
    wanted = montage and len(cases) > 1

    def work(case: MaskCase, reader: GuardedReader) -> str:
        read = read_mask_case(case, reader, names=names)
        picture = draw_preview(
            read.mask, read.geometry, read.labels, title=case.case,
            voxels=None if read.scan is None else read.scan.voxels(),
            modality="" if read.scan is None else read.scan.modality,
        )  # fmt: skip
        path = out if is_file else out / f"{case.case}.png"
        write_bytes(path, png_of(picture))
        if wanted:
            picture.thumbnail((_MONTAGE_PX, 4 * _MONTAGE_PX))
            small[case.case] = picture
        return str(path)

    done, failed = for_each(cases, work, workers=workers, progress=progress)
    sheets = []
    names_done = list(done) if wanted else []
    for number, start in enumerate(range(0, len(names_done), _SHEET_CASES), start=1):
        part = [(case, small[case]) for case in names_done[start : start + _SHEET_CASES]]
        path = out / ("montage.png" if number == 1 else f"montage_{number}.png")
        write_bytes(path, png_of(draw_montage(part)))
        sheets.append(str(path))
    return {"cases": done, "montage": sheets, "failed": failed}
