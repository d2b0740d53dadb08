"""What became of each case of a batch: one SQLite file for each shard, one writer for each file.

The file is ``DIR/.medseg/ledger.sqlite`` (``ledger-2-of-8.sqlite`` for a shard), with one table
of text columns, open to any SQLite reader::

    sqlite3 DIR/.medseg/ledger.sqlite "select case_id, state, error from cases"

It keeps SQLite's rollback journal: write-ahead logs need shared memory, which network disks
do not have.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from medseg.core.errors import OutputError

State = Literal["pending", "running", "done", "failed"]
FORMAT = 1
_WAIT_S = 30.0
_TABLE = """
create table if not exists cases (
    case_id text primary key, state text not null, key text not null, error text not null,
    updated text not null, facts text not null
) without rowid
"""


@dataclass(frozen=True)
class Entry:
    """What is known of a case.

    Attributes:
        case: Its id.
        state: What became of it; ``running`` also where the process was killed meanwhile.
        key: What it was made from and how, see ``medseg.batch.keys``; empty where unknown.
        error: One line, where it failed.
        facts: ``attempts``, ``seconds`` of each phase, ``peak_memory_bytes``, ``warnings``,
            ``provenance``, ``files`` (SHA-256 of each file, by its path below DIR), and
            ``of_input``: whether the scan was at fault.
        updated: When, in UTC.
    """

    case: str
    state: State
    key: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    updated: str = ""


class Ledger:
    """The ledger of a run; use it with ``with``, from one thread.

    Args:
        path: The file; made where it is not there.

    Raises:
        OutputError: It cannot be written, is none, or a newer medseg wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = self.path = path
        with _told(path):
            self._base = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._base.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._base.close()

    def _prepare(self) -> None:
        self._base.execute("pragma journal_mode = delete")
        (found,) = self._base.execute("pragma user_version").fetchone()
        if found > FORMAT:
            raise OutputError(
                str(self._path),
                expected=f"a ledger of format {FORMAT}",
                got=f"format {found}, of a newer medseg",
                cure="Update medseg, or choose another --out.",
            )
        # Written at once, so that a disk that cannot be written is told before work starts.
        self._base.execute("begin immediate")
        self._base.execute(_TABLE)
        self._base.execute(f"pragma user_version = {FORMAT}")
        self._base.execute("commit")

    def write(self, entries: Iterable[Entry]) -> None:
        """Replace what is known of some cases, all or none.

        Raises:
            OutputError: The disk is full, say.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        rows = [
            (e.case, e.state, _packed(e.key), e.error, e.updated or now, _packed(e.facts))
            for e in entries
        ]
        if not rows:
            return
        with _told(self._path):
            # Ctrl-C may come between any two of these, also right after the first.
            try:
                self._base.execute("begin immediate")
                self._base.executemany("insert or replace into cases values (?,?,?,?,?,?)", rows)
                self._base.execute("commit")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("rollback")
                raise

    def read(self) -> dict[str, Entry]:
        """All entries by case id.

        Raises:
            OutputError: The file is damaged.
        """
        with _told(self._path):
            return _entries(self._base)


def read_ledger(path: Path) -> dict[str, Entry]:
    """The entries of a ledger that another run may be writing.

    Raises:
        OutputError: The file is damaged or cannot be opened.
    """
    # Not read-only: what a killed process left in the journal must be rolled back first.
    with (
        _told(path),
        closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=_WAIT_S))
        as base,
    ):  # fmt: skip
        return _entries(base)


def _entries(base: sqlite3.Connection) -> dict[str, Entry]:
    rows = base.execute("select case_id, state, key, error, updated, facts from cases")
    return {
        case: Entry(case, cast(State, state), json.loads(key), error, json.loads(facts), updated)
        for case, state, key, error, updated, facts in rows
    }


def _packed(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell what SQLite says in the words of medseg."""
    try:
        yield
    except (sqlite3.Error, ValueError, OSError) as error:
        damaged = isinstance(error, ValueError) or "not a database" in str(error)
        raise OutputError(
            f"the ledger {path}",
            expected="a file that can be written",
            got=str(error) or type(error).__name__,
            cure=f"Remove {path}; the masks stay, and their scans are segmented once more."
            if damaged or "malformed" in str(error)
            else "Free some space, or choose an --out that can be written.",
        ) from error
