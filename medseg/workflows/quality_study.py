"""What a fold learns of quality while it trains: how its cases look, how its masks fare.

Looks are at training cases with their reference masks. Samples, from which the Dice of other
masks is predicted, are masks of cases that are not trained on: of the inner cases by the
averaged weights at early stages of the run, which make masks of all qualities; of the inner
and validation cases by the finished model; and their reference masks with faults planted in
them. All of it stands in ``quality.json`` of the fold.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import ResourceError
from medseg.core.plan import Plan
from medseg.core.profile import Profile
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case
from medseg.datasets.reading import HERE, Reader, read_case_image, read_case_mask
from medseg.inference.predictor import Predictor
from medseg.io.atomic import write_text
from medseg.io.formats import read_mask
from medseg.io.guarded import GuardedReader
from medseg.package.package import ModelPackage
from medseg.quality.deviations import sureness_from
from medseg.quality.features import Scale, View
from medseg.quality.profile import learn_profile
from medseg.quality.samples import KnownCase, Study, planted_samples, samples_of
from medseg.workflows import segment
from medseg.workflows.run import Ground, Run

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

# Shares of the run at which masks are sampled: early, while they are still bad.
STAGES = (0.01, 0.03, 0.08, 0.2, 0.45)
_MOST_LOOKS, _MOST_SAMPLED, _MOST_PLANTED = 300, 8, 400
# Of the time of a run with a budget: for looks, for masks of all stages, for planting.
_LOOKING, _SAMPLING, _PLANTING = 0.02, 0.04, 0.015
_FEWEST_LOOKS, _THREADS = 5, 2
# Without a budget: other processes that train wait for no longer than this.
_MOST_S = 300.0
# A look, where none was timed yet; learning from the masks in the end.
_LOOK_S, _FITTING_S = 0.1, 3.0


class FoldStudy:
    """The study of one fold.

    Args:
        run: That it is part of.
        ground: What the run stands on.
        folder: Of the fold; what was learned before the run was stopped is in it.
        inner: Ids of cases that are kept back.
    """

    def __init__(self, run: Run, ground: Ground, folder: Path, *, inner: Sequence[str]) -> None:
        self._run, self._ground, self._folder = run, ground, folder
        self._plan, self._scale = ground.plan, Scale.of(ground.plan)
        self._numbers = {case.id: number for number, case in enumerate(run.dataset.cases)}
        self._inner = run.dataset.select(tuple(inner))
        self._study = _read(folder)
        self._known: Profile | None = None
        self._share, self._look_s = 0.0, _LOOK_S

    def look(self, learn: Sequence[str]) -> None:
        """Look at the cases that are trained on, in parallel; nothing where that is done."""
        if self._study.looks:
            return
        step = max(1, len(learn) // _MOST_LOOKS)
        cases = self._run.dataset.select(tuple(learn[::step][:_MOST_LOOKS]))
        report, ends, began = self._run.phase("profile"), self._ends(_LOOKING), time.perf_counter()
        with ThreadPoolExecutor(_THREADS) as pool, GuardedReader() as reader:
            found = pool.map(lambda case: self._reference(case, reader), cases)
            for done, (case, known) in enumerate(zip(cases, found, strict=True), start=1):
                self._study.looks[known.number] = known.look
                report(done, len(cases), case.id)
                if done >= _FEWEST_LOOKS and time.perf_counter() > ends:
                    pool.shutdown(cancel_futures=True)
                    break
        self._look_s = _THREADS * (time.perf_counter() - began) / max(1, len(self._study.looks))
        self._keep()

    def closing_seconds(self, validation: int) -> float:
        """Time that :meth:`finish` takes of a run with a budget.

        Args:
            validation: Cases of the fold.
        """
        budget_s = self._run.settings.budget_s
        if budget_s is None:
            return 0.0
        sampled = min(len(self._inner), self._affordable())
        looks = 2 * (sampled + validation) * self._look_s
        network = 1.1 * sampled * self._ground.mask_s
        return looks + network + _PLANTING * budget_s + _FITTING_S

    def sample_stage(self, network: nn.Module, share: float) -> None:
        """Sample masks where a stage lies between this share of the run and the last one.

        Args:
            network: Of the moment; copied.
            share: Of the run, 0 to 1.
        """
        before, self._share = self._share, share
        if not any(before < stage <= share for stage in STAGES) or self._profile() is None:
            return
        predictor = Predictor([copy.deepcopy(network)], self._plan, self._run.device)
        self._sample_inner(predictor, final=False)

    def finish(self, package: ModelPackage, validation: Sequence[str]) -> Profile | None:
        """Sample the finished model, and learn the profile.

        Args:
            package: The model.
            validation: Ids of cases whose masks are written already, with sidecars that hold
                the network's confidence.
        """
        if self._profile() is None:
            return None
        self._study.samples = [one for one in self._study.samples if one.made == "stage"]
        predictor = Predictor(package.networks(), package.plan, self._run.device)
        self._sample_inner(predictor, final=True)
        held = self._run.dataset.select(tuple(validation))
        for case in held:
            path = self._folder / "validation" / f"{case.id}.nii.gz"
            sidecar = json.loads(segment.sidecar_of(path).read_text(encoding="utf-8"))
            self._sample(case, read_mask(path)[0], sidecar.get("confidence", {}), final=True)
        self._plant([*self._inner, *held])
        self._keep()
        return self._study.profile(self._run.labels, self._scale)

    def _plant(self, cases: Sequence[Case]) -> None:
        """Masks with faults, of all cases in turn."""
        profile, ends = self._profile(), self._ends(_PLANTING)
        assert profile is not None
        rng = np.random.default_rng(self._run.settings.seed)
        # A label of a case gives a handful.
        each = max(1, _MOST_PLANTED // max(1, len(cases)))
        for case in cases:
            if time.perf_counter() > ends:
                break
            for sample in planted_samples(self._reference(case), profile, rng, most=each):
                self._study.samples.append(sample)
                if time.perf_counter() > ends:
                    break

    def _ends(self, share: float) -> float:
        """When some work is to end, by the clock, that may take a share of the budget."""
        budget_s = self._run.settings.budget_s
        return time.perf_counter() + (_MOST_S if budget_s is None else share * budget_s)

    def _profile(self) -> Profile | None:
        """What is usual, as the looks tell."""
        if self._known is None and self._study.looks:
            looks = list(self._study.looks.values())
            self._known = learn_profile(looks, self._run.labels, self._scale)
        return self._known

    def _reference(self, case: Case, reader: Reader = HERE) -> KnownCase:
        """A case with its reference mask, as the network is to paint it."""
        scheme, labels = self._plan.scheme, self._run.labels
        indices = scheme.to_indices(read_case_mask(case, reader)[0])
        mask = labels.to_values(scheme.painted(indices))
        told, scan = scheme.known(case.annotated), read_case_image(case, reader)
        unknown = [n for n, one in zip(labels.names, told or (), strict=False) if not one]
        view = View(scan.geometry, scan.voxels(), self._scale)
        found = replace(view.look(mask, labels), unknown=tuple(unknown))
        ignored = None if scheme.ignored is None else indices == scheme.ignored
        return KnownCase(self._numbers[case.id], mask, labels, view, found, ignored)

    def _sample_inner(self, predictor: Predictor, *, final: bool) -> None:
        predictor, plan = predictor.adjusted(confidence=True), predictor.plan
        for case in self._inner[: self._affordable()]:
            scan = segment.read(read_case_image(case), plan)
            try:
                prepared = prepared_case(self._run, case, scan, plan)
                classes = segment.infer(prepared, predictor)
            except ResourceError as error:
                # The run is worth more than its study.
                _log.warning("case %s is not looked at by the way: %s", case.id, error)
                continue
            mask = segment.finish(classes, scan, plan).labels
            self._sample(case, mask, prepared.facts["confidence"], final=final)
        self._keep()

    def _affordable(self) -> int:
        """How many inner cases are sampled at a time."""
        budget_s = self._run.settings.budget_s
        if budget_s is None:
            return _MOST_SAMPLED
        a_case_s = 1.1 * max(self._ground.mask_s, 1e-3) + 2 * self._look_s
        return min(_MOST_SAMPLED, int(_SAMPLING * budget_s / (a_case_s * (len(STAGES) + 1))))

    def _sample(
        self, case: Case, mask: NDArray[Any], confidence: dict[str, Any], *, final: bool
    ) -> None:
        profile = self._profile()
        assert profile is not None
        self._study.samples += samples_of(
            self._reference(case), mask, profile, sureness_from(confidence),
            made="model" if final else "stage",
        )  # fmt: skip

    def _keep(self) -> None:
        write_text(self._folder / "quality.json", self._study.to_json())


def prepared_case(run: Run, case: Case, scan: Scan, plan: Plan) -> segment.Prepared:
    """A case as the network takes it: with the labels of an earlier stage, where there is one."""
    if run.earlier is not None:
        return run.earlier.prepared(case, scan, plan)
    return segment.prepare(scan, plan)


def joined_profile(run: Run, folders: Sequence[Path], plan: Plan) -> Profile | None:
    """The profile of all folds together: each case once, and the masks of each fold."""
    whole = Study()
    for folder in folders:
        part = _read(folder)
        whole.looks |= part.looks
        whole.samples += part.samples
    return whole.profile(run.labels, Scale.of(plan))


def _read(folder: Path) -> Study:
    try:
        return Study.from_json((folder / "quality.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return Study()
