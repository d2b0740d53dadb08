"""Segment files and folders of scans: paths in, masks out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from medseg.core.errors import InputError, MedsegError, OutputError
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.io.dicom_studies import Study
from medseg.workflows.api import Model, load_model
from medseg.workflows.cases import Job, Source, find_cases, read_case_table
from medseg.workflows.maps import map_path
from medseg.workflows.options import PredictKeywords, PredictOptions
from medseg.workflows.pipeline import Outcome, Pipeline
from medseg.workflows.qc import by_trust
from medseg.workflows.segment import paths_of
from medseg.workflows.work import Work, mask_path, scan_path, told

Progress = Callable[[int, int, str], None]
Inputs = str | Path | Sequence[str | Path]
_log = logging.getLogger(__name__)

__all__ = ["find_cases", "find_jobs", "load_models", "predict", "read_case_table"]


def predict(
    model: str | Path | Model,
    inputs: Inputs,
    out: str | Path,
    *,
    device: str = "auto",
    cases: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[PredictKeywords],
) -> dict[str, Any]:
    """Segment scans into ``out/<case>.nii.gz``, each with a JSON sidecar.

    Each call segments all scans anew and writes nothing but masks and sidecars.
    ``medseg.batch.local.predict_batch``, which the command uses for folders, keeps a ledger in
    ``out`` and does only what is missing or changed.

    Args:
        model: A package folder, or a model that is loaded already.
        inputs: Scan files and folders of them. The case id is the path below their common
            folder, without the suffix. DICOM: a folder tree, a zip or a DICOMDIR; one case
            per study, named by the folder that holds it.
        out: Folder for the masks.
        device: As in ``load_model``; several with commas between them, or ``"all"`` GPUs.
        cases: A CSV table with the column ``case`` and one column per channel, instead of
            ``inputs``.
        progress: Called with (done, total, case id).
        options: The fields of :class:`~medseg.workflows.options.PredictOptions`: ``labels``
            (names, in a list or with commas), ``grid``, ``series``, ``accept_gaps``,
            ``save_scan``, ``backend``, limits of memory and so on.

    Returns:
        ``{"done": {case: path}, "failed": {case: message}, "seconds": s}``; with ``qc`` also
        ``"trust": {case: {"trust": 0 to 1, "reasons": [...]}}``, the least trusted first.

    Raises:
        InputError: There is nothing to segment, two inputs have one id, a mask would replace
            a scan, or every case failed.
        PackageError: The model is damaged.
    """
    wanted = options_of(options)
    out, started = Path(out), time.perf_counter()
    models = load_models(model, device, wanted)
    jobs = find_jobs(models[0].plan, inputs, out, cases=cases, options=wanted)
    make_folder(out)
    done: dict[str, str] = {}
    failed: dict[str, str] = {}
    errors: list[Exception] = []
    provenances: dict[str, dict[str, Any]] = {}
    with Pipeline(Work(models, out, wanted), jobs) as pipeline:
        for event in pipeline:
            if not isinstance(event, Outcome):
                continue
            if event.error is None:
                done[event.case] = str(event.files[0])
                provenances[event.case] = event.provenance
            else:
                failed[event.case] = told(event.error)
                errors.append(event.error)
                _log.warning("%s: %s", event.case, failed[event.case])
            if progress is not None:
                progress(len(done) + len(failed), len(jobs), event.case)
    if errors and not done:
        raise_all_failed(errors, len(jobs))
    trust = {"trust": by_trust(provenances)} if wanted.qc else {}
    seconds = round(time.perf_counter() - started, 3)
    return {"done": done, "failed": failed, "seconds": seconds, **trust}


def options_of(keywords: PredictKeywords) -> PredictOptions:
    """Options from keyword arguments.

    Raises:
        TypeError: There is no such argument.
        SettingsError: A value is out of range.
    """
    if unknown := sorted(set(keywords) - set(PredictKeywords.__annotations__)):
        raise TypeError(f"predict() has no argument '{unknown[0]}'")
    return PredictOptions(**keywords)


def load_models(model: str | Path | Model, device: str, options: PredictOptions) -> list[Model]:
    """The model, once for each device that is named.

    Args:
        model: A package folder, or a model that is loaded already.
        device: One or several with commas between them, or ``"all"``: all GPUs of this
            machine, or its CPU where there is none.
        options: Say which labels are wanted, and the backend; a loaded model keeps its own.

    Raises:
        PackageError: The model is damaged.
        ResourceError: This machine has no such device.
        LabelError: It has no such label.
        SettingsError: What is wanted beside labels is not to be had of it.
    """
    if isinstance(model, Model):
        models = [model]
    else:
        names = device_names(device)
        models = [load_model(model, name, backend=options.backend) for name in names]
    models = [one.wanting(options.labels) for one in models]
    if options.qc:
        models = [one.judging() for one in models]
    products = options.products(models[0].labels)
    return [
        one.within(options.limits, skip_air=options.skip_air).giving(products) for one in models
    ]


def device_names(text: str) -> list[str]:
    """``"cuda:0,cuda:1"`` or ``"all"`` to the name of each device.

    Raises:
        InputError: A name is empty.
    """
    if text.strip() == "all":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [f"cuda:{number}" for number in range(count)] or ["cpu"]
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError("--devices", expected="names with commas, or all", got=f"'{text}'")
    return names


def find_jobs(
    plan: Plan,
    inputs: Inputs,
    out: Path,
    *,
    cases: str | Path | None,
    options: PredictOptions,
) -> list[Job]:
    """The cases of a call, each with the series that is wanted.

    Raises:
        InputError: There is nothing to segment, two inputs have one id, or a mask would
            replace a scan.
    """
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    if cases is None:
        jobs = find_cases([Path(path) for path in inputs], plan, out=out)
    elif inputs:
        raise InputError("--cases", expected="a table or scans, not both", got="both")
    else:
        jobs = read_case_table(Path(cases), plan)
    jobs = [(case, _wish(source, options)) for case, source in jobs]
    _refuse_to_overwrite(jobs, out, options=options, labels=plan.labels)
    return jobs


def _wish(source: Source, options: PredictOptions) -> Source:
    if isinstance(source, Study):
        return source.wanting(options.series, accept_gaps=options.accept_gaps)
    return source


def _refuse_to_overwrite(
    jobs: Sequence[Job], out: Path, *, options: PredictOptions, labels: LabelSet
) -> None:
    """Scans are never replaced by masks, whichever way ``--out`` is spelled."""
    scans = {path.resolve() for _, source in jobs for path in paths_of(source)}
    products = options.products(labels)
    for case, _ in jobs:
        mask = mask_path(out, case)
        beside = [map_path(mask, name) for name in products.names]
        beside += [scan_path(out, case)] if options.save_scan else []
        beside += options.outputs.paths(mask, labels)
        for written in (mask, *beside):
            if written.resolve() in scans:
                raise InputError(
                    f"--out {out}",
                    expected="a folder where masks replace no scan",
                    got=f"{written}, which is a scan",
                    cure="Choose another --out.",
                )


def raise_all_failed(errors: Sequence[Exception], total: int) -> None:
    """Raise the first error; where there are several cases, it says that all failed."""
    first = errors[0]
    if not isinstance(first, MedsegError) or total == 1:
        raise first
    raise type(first)(
        first.what,
        expected=first.expected,
        got=first.got,
        cure=f"{first.cure} All {total} cases failed; this is the first.".strip(),
    ) from first


def make_folder(out: Path) -> None:
    """Make the folder of the masks.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"--out {out}", expected="a folder", got=error.strerror or str(error)
        ) from error
