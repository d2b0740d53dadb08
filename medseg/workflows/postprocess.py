"""Post-process masks: folders of masks in, cleaned masks and what was removed out.

The steps are typed, come from a JSON, or are learned: predictions and references in, the steps
that help out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import InputError, MedsegError, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep
from medseg.core.postprocess_step import PostprocessChain
from medseg.core.results import Prediction
from medseg.io.atomic import write_text
from medseg.io.formats import write_mask
from medseg.io.guarded import GuardedReader
from medseg.postprocess.chain import (
    StepChange,
    apply_with_changes,
    chain_from_json,
    parse_steps,
    steps_for,
    values_named,
)
from medseg.workflows.evaluation_labels import find_labels
from medseg.workflows.mask_cases import (
    MaskCase,
    Progress,
    dataset_names,
    find_mask_cases,
    for_each,
    keep_inputs,
    labels_in,
    read_mask_case,
    suffix_of,
)
from medseg.workflows.mask_reading import Rules, read_pair
from medseg.workflows.pairing import MaskPair, OrganFiles, label_folder, pair_masks

_CHAIN_SUFFIX = ".json"


def postprocess(
    masks: str | Path,
    out: str | Path,
    *,
    steps: str,
    connectivity: int = 26,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Apply post-processing steps to masks; type, header and grid of each stay.

    Label names come from the masks' NIfTI headers, else from a ``dataset.json`` in or above
    their folder; every label may be named by its value.

    Args:
        masks: A folder of masks, or one.
        out: Another folder; gets a mask of the same format and a JSON of what each step
            removed (mm3) for each case. What only is read comes as NIfTI.
        steps: As :func:`medseg.postprocess.chain.parse_steps` takes them, or the path of a JSON
            that :func:`learn_chain` wrote; it says its own connectivity.
        connectivity: 6, 18 or 26; flat masks also 4 or 8.
        workers: Cases worked on at once; by default one per core.
        progress: Called with (done, total, case id).

    Returns:
        ``{"out": path, "cases": {case id: changes}, "failed": {case id: message}}``.

    Raises:
        InputError: A step is unknown, or no mask could be done.
        OutputError: A result cannot be written.
    """
    folder = Path(out)
    keep_inputs(folder, masks)
    wanted = _Wanted.of(steps, connectivity)
    cases, names = find_mask_cases(masks), dataset_names(masks)

    def work(case: MaskCase, reader: GuardedReader) -> dict[str, Any]:
        return _one(case, folder / case.case, reader, wanted=wanted, names=names)

    done, failed = for_each(cases, work, workers=workers, progress=progress)
    return {"out": str(folder), "cases": done, "failed": failed}


@dataclass(frozen=True)
class _Wanted:
    """Steps as they were given: typed, or as a chain."""

    typed: str
    connectivity: int
    chain: PostprocessChain | None

    @classmethod
    def of(cls, steps: str, connectivity: int) -> _Wanted:
        if not steps.lower().endswith(_CHAIN_SUFFIX):
            return cls(steps, connectivity, None)
        path = Path(steps)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"--steps {steps}", expected="a JSON with steps", got=str(error) or "none"
            ) from error
        return cls("", connectivity, chain_from_json(text, source=f"--steps {steps}"))

    @property
    def values(self) -> tuple[int, ...]:
        """Labels that are meant whether a mask has them or not."""
        if self.chain is None:
            return values_named(self.typed)
        return () if self.chain.labels is None else self.chain.labels.values

    def steps_for(self, labels: LabelSet) -> tuple[PostprocessStep, ...]:
        if self.chain is not None:
            return steps_for(self.chain, labels)
        return parse_steps(self.typed, labels, connectivity=self.connectivity)


def _one(
    case: MaskCase, target: Path, reader: GuardedReader, *, wanted: _Wanted, names: LabelSet | None
) -> dict[str, Any]:
    read = read_mask_case(case, reader, names=names)
    after, changes = read.mask, list[StepChange]()
    # Of an empty mask the labels may have no names, and no step changes it.
    if after.any():
        labels = labels_in(after, read.labels, also=wanted.values)
        chain = wanted.steps_for(labels)
        after, changes = apply_with_changes(after, chain, labels, read.geometry)
    if after.dtype.itemsize > 4:
        after = after.astype(read.labels.dtype)  # NIfTI readers do not expect 64-bit labels
    grid = read.grid
    made = Prediction(after, grid.geometry, read.labels, forms=grid.forms, slices=grid.slices)
    report = {"steps": [asdict(change) for change in changes], "volumes_ml": made.volumes_ml()}
    write_mask(target.with_name(target.name + suffix_of(case.mask)), made)
    write_text(target.with_name(f"{target.name}.json"), json.dumps(report, indent=2))
    return report


def learn_chain(
    predictions: str | Path,
    references: str | Path,
    out: str | Path | None = None,
    *,
    labels: LabelSet | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learn which steps raise the Dice of predictions that a model was not trained on.

    Masks are paired as :func:`medseg.workflows.evaluate.evaluate` pairs them; which steps are
    tried and kept is told at :func:`medseg.training.learned_steps.learn_steps`.

    Args:
        predictions: A folder of masks as the network made them, without post-processing.
        references: A folder of masks, or the dataset that holds them.
        out: Gets the steps as JSON, for ``--steps``; None to write nothing.
        labels: What to learn for: a label set, or a selection such as ``"liver,spleen"``.
        progress: Called with (done, total, case id).

    Returns:
        ``{"steps": [{"step": as it is typed, "evidence": text}], "chain": the
        :class:`PostprocessChain`, "cases": number, "failed": {case id: message}}``.

    Raises:
        InputError: Nothing can be paired, or all cases failed.
        OutputError: The JSON cannot be written.
    """
    # It brings SciPy's statistics, which takes a while to load.
    from medseg.training.learned_steps import HeldOutPair, learn_steps

    predictions, references = Path(predictions), label_folder(Path(references))
    path = None if out is None else Path(out)
    if path is not None and path.suffix.lower() != _CHAIN_SUFFIX:
        raise SettingsError(f"--out {path}", expected="a name ending in .json with --learn",
                            got=path.suffix or "none")  # fmt: skip
    found, _ = pair_masks(predictions, references, cases=None, skip=None)
    pairs = [pair for pair in found if pair.prediction is not None]
    failed: dict[str, str] = {}
    with GuardedReader() as reader:
        known = find_labels(labels, pairs, references) or _by_value(pairs, reader)
        rules = Rules(1.0, known)

        def read() -> Iterator[HeldOutPair]:
            for number, pair in enumerate(pairs, start=1):
                if pair.case not in failed:
                    try:
                        prediction, reference, scan = _read(pair, rules, reader)
                        yield HeldOutPair(prediction, reference, scan.geometry)
                    except MedsegError as error:
                        failed[pair.case] = str(error)
                if progress is not None:
                    progress(number, len(pairs), pair.case)

        chain = PostprocessChain(labels=known, steps=learn_steps(read, known))
    if len(failed) == len(pairs):
        case, message = next(iter(failed.items()))
        raise InputError(
            f"all {len(failed)} cases failed", expected="pairs of masks to learn from",
            got=f"for {case}: {message}",
        )  # fmt: skip
    if path is not None:
        write_text(path, chain.model_dump_json(indent=2, exclude_defaults=True) + "\n")
    steps = [{"step": step.text, "evidence": step.evidence} for step in chain.steps]
    return {"steps": steps, "chain": chain, "cases": len(pairs) - len(failed), "failed": failed}


def _read(pair: MaskPair, rules: Rules, reader: GuardedReader) -> tuple[Any, Any, Any]:
    for source in (pair.prediction, pair.reference):
        if isinstance(source, OrganFiles):
            raise InputError(
                f"case {pair.case}", expected="one mask with all labels",
                got=f"a file per organ in {source.folder}", cure="Join them in one mask.",
            )  # fmt: skip
    return read_pair(pair, rules, reader)[:3]


def _by_value(pairs: list[MaskPair], reader: GuardedReader) -> LabelSet:
    """Labels without names: the values of the references."""
    met: set[int] = set()
    for pair in pairs:
        if isinstance(pair.reference, Path):
            met |= set(np.unique(reader.mask(pair.reference)[0]).tolist())
    return LabelSet.from_names({int(value): str(value) for value in met if value} or {1: "1"})
