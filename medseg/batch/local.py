"""A batch on this machine, or one shard of it: only what is missing or changed is worked on."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from medseg.batch.keys import are_whole, case_key, checksums, same_content, same_key
from medseg.batch.ledger import Entry, Ledger, read_ledger
from medseg.batch.lock import only_run
from medseg.core.errors import InputError, Interrupted, OutputError, SettingsError
from medseg.io.atomic import remove_leftovers, write_text
from medseg.io.lock import holder_of
from medseg.workflows.api import Model
from medseg.workflows.cases import Job
from medseg.workflows.options import PredictKeywords
from medseg.workflows.pipeline import Outcome, Pipeline
from medseg.workflows.predict import (
    Inputs,
    Progress,
    find_jobs,
    load_models,
    make_folder,
    options_of,
    raise_all_failed,
)
from medseg.workflows.qc import by_trust
from medseg.workflows.work import Work, mask_path, told

FOLDER = ".medseg"
_SHARD = re.compile(r"(?P<number>\d+)\s*/\s*(?P<count>\d+)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchOptions:
    """Which cases of a batch are worked on.

    Attributes:
        retry_failed: Try those again whose scan was at fault in an earlier run.
        limit: At most so many in this run; None for all.
        shard: ``"2/8"``: the second of eight equal parts, for job arrays; None for all.
        verify: Compare the contents of the scans, not their sizes and times.

    Raises:
        SettingsError: ``shard`` or ``limit`` is out of range.
    """

    retry_failed: bool = False
    limit: int | None = None
    shard: str | None = None
    verify: bool = False

    def __post_init__(self) -> None:
        number, count = self.part
        if not 1 <= number <= count:
            raise SettingsError(
                "--shard", expected="i/n with i from 1 to n", got=f"'{self.shard}'",
                cure="The first of eight parts is 1/8, the last 8/8.",
            )  # fmt: skip
        if self.limit is not None and self.limit < 1:
            raise SettingsError("--limit", expected="1 or more", got=str(self.limit))

    @property
    def part(self) -> tuple[int, int]:
        """Which part, from 1, of how many; (0, 0) where it is none."""
        match = _SHARD.fullmatch((self.shard or "1/1").strip())
        return (int(match["number"]), int(match["count"])) if match else (0, 0)

    @property
    def name(self) -> str:
        """What the files of this shard are called."""
        number, count = self.part
        return "" if count == 1 else f"-{number}-of-{count}"


@dataclass
class _Sorted:
    """The cases of a run, by what is to be done with them."""

    done: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    todo: list[Job] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenances: dict[str, dict[str, Any]] = field(default_factory=dict)


def predict_batch(
    model: str | Path | Model,
    inputs: Inputs,
    out: str | Path,
    *,
    device: str = "auto",
    cases: str | Path | None = None,
    progress: Progress | None = None,
    batch: BatchOptions | None = None,
    **options: Unpack[PredictKeywords],
) -> dict[str, Any]:
    """Segment scans as ``medseg.predict`` does, and remember each in ``out/.medseg/``.

    A second call works only on what is missing or changed: a case is done if its scan (size and
    time of its files, or contents with ``batch.verify``), the model, the options and the backend
    are the same, and its mask and sidecar hold what was written. A scan that was at fault is
    not tried again until it changes; a full disk, too little memory or a fault of medseg is.

    Args:
        model: As in ``medseg.predict``, and so are those not named here.
        inputs: Scan files and folders.
        out: Folder for the masks and the ledger.
        device: One or several with commas, or ``"all"``.
        cases: A table, instead of ``inputs``.
        progress: Called with (done, total, case id).
        batch: Which of the cases.
        options: The fields of ``PredictOptions``.

    Returns:
        ``{"done": {case: path}, "failed": {case: message}, "kept": n, "left": n, "seconds": s}``;
        ``kept`` were done before, ``left`` are beyond the limit. With ``qc`` also ``"trust"``, as
        ``medseg.predict`` gives it, of all that are done. The same is written to
        ``out/.medseg/summary.json``.

    Raises:
        InputError: As ``medseg.predict``; or another run is at work on this folder or shard.
        OutputError: The ledger cannot be written.
        Interrupted: Ctrl-C; the ledger says what is done.
    """
    batch, wanted = batch or BatchOptions(), options_of(options)
    out, started = Path(out), time.perf_counter()
    models = load_models(model, device, wanted)
    jobs = _part_of(find_jobs(models[0].plan, inputs, out, cases=cases, options=wanted), batch)
    with _opened(out, batch) as ledger:
        run = _Run(ledger, Work(models, out, wanted), progress, total=len(jobs))
        cases_now = _sort_out(jobs, ledger, work=run.work, batch=batch)
        left = max(0, len(cases_now.todo) - (batch.limit or len(cases_now.todo)))
        del cases_now.todo[len(cases_now.todo) - left :]
        run.work_on(cases_now)
        summary = {
            "done": dict(sorted(run.done.items())),
            "failed": dict(sorted(run.failed.items())),
            "kept": len(cases_now.done),
            "left": left,
            "seconds": round(time.perf_counter() - started, 3),
            **({"trust": by_trust(cases_now.provenances)} if wanted.qc else {}),
        }
        write_text(out / FOLDER / f"summary{batch.name}.json", json.dumps(summary, indent=1) + "\n")
    if run.errors and not run.done:
        raise_all_failed(run.errors, len(run.failed))
    return summary


@contextmanager
def _opened(out: Path, batch: BatchOptions) -> Iterator[Ledger]:
    """The ledger of this shard, held by this run alone; what killed runs left is removed."""
    make_folder(out)
    home = out / FOLDER
    make_folder(home)
    with ExitStack() as stack:
        lock = stack.enter_context(only_run(home / f"lock{batch.name}"))
        _refuse_other_parts(home, batch)
        removed = remove_leftovers(out, dead={lock.before.process} - {""})
        if removed:
            _log.info("%d unfinished files of a run that was killed are removed", removed)
        yield stack.enter_context(Ledger(home / f"ledger{batch.name}.sqlite"))


def _refuse_other_parts(home: Path, batch: BatchOptions) -> None:
    """Runs that cut the cases in another way would do the same work twice."""
    _, count = batch.part
    for lock in sorted(home.glob("lock*")):
        other = lock.name.removeprefix("lock")
        if other == batch.name or (count > 1 and other.endswith(f"-of-{count}")):
            continue
        if holder_of(lock) is not None:
            raise InputError(
                f"--out {home.parent}",
                expected=f"no run at work but parts of {count}" if count > 1 else "no run at work",
                got=f"one that holds {lock}",
                cure="Wait for it or stop it, or give all runs the same number of shards.",
            )


def _part_of(jobs: Sequence[Job], batch: BatchOptions) -> list[Job]:
    """Every n-th case in the order of their ids, so that parts are equal to a case."""
    number, count = batch.part
    return sorted(jobs, key=lambda job: job[0])[number - 1 :: count]


def _sort_out(jobs: Sequence[Job], ledger: Ledger, *, work: Work, batch: BatchOptions) -> _Sorted:
    """Which cases are done, which stay failed, and which are to be worked on."""
    known = _known(ledger, work.out)
    cases, interrupted = _Sorted(), []
    for job in jobs:
        case = job[0]
        entries = known.get(case, [])
        key = case_key(job, package_sha256=work.models[0].sha256, options=work.options)
        cases.keys[case] = key
        cases.attempts[case] = max((e.facts.get("attempts", 0) for e in entries), default=0)
        whole = (e for e in entries if _is_done(e, job, key, work=work, verify=batch.verify))
        if (entry := next(whole, None)) is not None:
            cases.done[case] = str(mask_path(work.out, case))
            cases.provenances[case] = entry.facts.get("provenance", {})
        elif entries and not batch.retry_failed and _stays_failed(entries[0], key):
            again = "(in an earlier run; --retry-failed tries it again)"
            cases.failed[case] = f"{entries[0].error} {again}"
        elif entries and entries[0].state == "running":
            interrupted.append(job)
        else:
            cases.todo.append(job)
    # Last, so that a scan that brings the process down does not keep the others from it.
    cases.todo += interrupted
    return cases


def _known(ledger: Ledger, out: Path) -> dict[str, list[Entry]]:
    """What this ledger and those of other shards say of each case, the latest first."""
    ledgers = [ledger.read()]
    for path in sorted((out / FOLDER).glob("ledger*.sqlite")):
        if path != ledger.path:
            try:
                ledgers.append(read_ledger(path))
            except OutputError as error:
                _log.warning("%s", error)
    known: dict[str, list[Entry]] = {}
    for entries in ledgers:
        for case, entry in entries.items():
            known.setdefault(case, []).append(entry)
    return {case: sorted(es, key=lambda e: e.updated, reverse=True) for case, es in known.items()}


def _is_done(entry: Entry, job: Job, key: dict[str, Any], *, work: Work, verify: bool) -> bool:
    if entry.state != "done" or not same_key(entry.key, key, but_files=verify):
        return False
    if not are_whole(entry.facts.get("files", {}), work.out):
        return False
    if not verify:
        return True
    hashes = entry.facts.get("provenance", {}).get("input_sha256", [])
    return same_content(job[1], work.models[0].plan, hashes)


def _stays_failed(entry: Entry, key: dict[str, Any]) -> bool:
    return (
        entry.state == "failed" and entry.facts.get("of_input", False) and same_key(entry.key, key)
    )


class _Run:
    """Works on cases and writes down what becomes of them."""

    def __init__(
        self, ledger: Ledger, work: Work, progress: Progress | None, *, total: int
    ) -> None:
        self.work, self._ledger, self._total = work, ledger, total
        self._progress: Callable[[int, int, str], None] = progress or (lambda *_: None)
        self._cases = _Sorted()
        self.done: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.errors: list[Exception] = []
        self._running: set[str] = set()

    def work_on(self, cases: _Sorted) -> None:
        """Do what is to do; the ledger is written at each step.

        Raises:
            Interrupted: Ctrl-C. What was ready by then is written down.
        """
        self._cases, self.done, self.failed = cases, dict(cases.done), dict(cases.failed)
        self._tell("")
        with Pipeline(self.work, cases.todo) as pipeline:
            try:
                for event in pipeline:
                    if isinstance(event, Outcome):
                        self._end(event)
                    else:
                        self._begin(event.case)
            except KeyboardInterrupt:
                pipeline.stop()
                for outcome in pipeline.rest():
                    self._end(outcome)
                self._ledger.write(self._entry(case, "pending") for case in sorted(self._running))
                raise Interrupted(
                    f"stopped: {len(self.done)} of {self._total} cases are done",
                    cure="The same command goes on from there.",
                ) from None

    def _begin(self, case: str) -> None:
        self._running.add(case)
        self._ledger.write([self._entry(case, "running")])

    def _end(self, outcome: Outcome) -> None:
        case = outcome.case
        try:
            hashes = checksums(outcome.files, self.work.out)
        except OSError as error:
            outcome = Outcome(case, OutputError(f"case {case}", got=str(error)))
            hashes = {}
        facts: dict[str, Any] = {
            "seconds": outcome.seconds,
            "peak_memory_bytes": outcome.peak_memory_bytes,
            "warnings": list(outcome.warnings),
            "provenance": outcome.provenance,
            "files": hashes,
        }
        if outcome.error is None:
            entry = self._entry(case, "done", **facts)
            self.done[case] = str(outcome.files[0])
            self._cases.provenances[case] = outcome.provenance
        else:
            reason = self.failed[case] = told(outcome.error)
            self.errors.append(outcome.error)
            _log.warning("%s: %s", case, reason)
            of_input = isinstance(outcome.error, InputError)
            entry = self._entry(case, "failed", error=reason, of_input=of_input, **facts)
        self._ledger.write([entry])
        self._running.discard(case)
        self._tell(case)

    def _entry(self, case: str, state: Any, *, error: str = "", **facts: Any) -> Entry:
        attempts = self._cases.attempts[case] + (state != "pending")
        return Entry(case, state, self._cases.keys[case], error, {"attempts": attempts, **facts})

    def _tell(self, case: str) -> None:
        self._progress(len(self.done) + len(self.failed), self._total, case)
