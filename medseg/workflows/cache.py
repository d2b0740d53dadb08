"""Preprocessed cases on disk: make them, see them, remove them."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.core.errors import InputError
from medseg.io.atomic import remove_leftovers, write_text
from medseg.training.cache import build_cache
from medseg.training.cache_store import NOTE, read_case
from medseg.training.cache_turns import remove_stale, users_of
from medseg.workflows.plan import decide, look_into, settled, splits_of
from medseg.workflows.run import Progress


def build(
    dataset: str | Path,
    out: str | Path,
    *,
    progress: Progress = lambda phase, done, total, note: None,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> dict[str, Any]:
    """Plan and preprocess all cases of a dataset, without training.

    Args:
        dataset: As for ``train``.
        out: A run's folder: the cases go to ``out/cache``, the plan to ``out/plan.json``.
        progress: Called with (phase, done, total, note).
        stop: Asked after each case.
        **settings: As for ``train``; ``plan_file`` takes a plan as it is.

    Returns:
        ``{"folder": path, "cases": number, "bytes": on the disk}``.

    Raises:
        OutputError: The disk has no room.
    """
    run = settled(dataset, Path(out), settings, progress=progress, stop=stop)
    splits = splits_of(run)
    fingerprint = look_into(run, splits, keep=True)
    changes = run.settings.plan_changes()
    # Often on another machine than the one that will train.
    plan = decide(run, fingerprint, changes=changes, folds_left=len(splits), trains_here=False)
    folder = run.folder / "cache"
    named = sorted({c for split in splits.values() for c in split.train + split.validation})
    cases, report = run.dataset.select(tuple(named)), run.phase("preprocess")
    build_cache(folder, cases, plan, progress=report, kept=run.kept)
    write_text(run.folder / "plan.json", plan.to_json())
    return {"folder": str(folder), "cases": len(named), "bytes": _total(_cases_below(folder))}


def listing(folder: str | Path) -> list[dict[str, Any]]:
    """The caches in a folder and below, one row for each and each plan.

    Args:
        folder: A run, a cache, or a folder of many.

    Returns:
        ``{"folder", "plan", "cases", "damaged", "bytes", "made"}`` each; ``made`` is the day of
        the latest case.

    Raises:
        InputError: There is no such folder.
    """
    rows: dict[tuple[Path, str], list[Path]] = {}
    for home in _cases_below(_there(folder)):
        stored = read_case(home)
        plan = "" if stored is None else str(stored.note["made_from"].get("plan", ""))
        rows.setdefault((home.parent, plan), []).append(home)
    return [
        {
            "folder": str(where),
            "plan": plan,
            "cases": len(homes),
            "damaged": sum(1 for home in homes if not plan),
            "bytes": _total(homes),
            "made": _day(max(home.stat().st_mtime for home in homes)),
        }
        for (where, plan), homes in sorted(rows.items())
    ]


def clean(folder: str | Path) -> dict[str, int]:
    """Remove the cached cases in a folder and below; nothing else is touched.

    Returns:
        ``{"cases": how many, "bytes": how much was freed}``.

    Raises:
        InputError: There is no such folder, or another process is at work on cases in it;
            nothing is removed then.
    """
    top = _there(folder)
    homes = _cases_below(top)
    for parent in sorted({home.parent for home in homes}):
        if users := users_of(parent):
            raise InputError(
                f"cache {parent}",
                expected="no run at work on it",
                got="; ".join(map(str, users)),
                cure="Wait for it or stop it, and clean again; nothing was removed.",
            )
    freed = _total(homes)
    for home in homes:
        # The note first: without it what is left counts as nothing.
        (home / NOTE).unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)
    for parent in {home.parent for home in homes}:
        remove_leftovers(parent)
        remove_stale(parent)
        if parent != top and not any(parent.iterdir()):
            parent.rmdir()
    return {"cases": len(homes), "bytes": freed}


def _there(folder: str | Path) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise InputError(
            str(folder), expected="a run, or a folder with caches", got="no such folder"
        )
    return path


def _cases_below(folder: Path) -> list[Path]:
    """Folders of cached cases: such as hold an image in chunks."""
    found = []
    for root, folders, names in os.walk(folder):
        if "image.b2nd" in names and "label.b2nd" in names:
            found.append(Path(root))
            folders.clear()
    return sorted(found)


def _total(homes: list[Path]) -> int:
    return sum(file.stat().st_size for home in homes for file in home.iterdir())


def _day(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s).astimezone().date().isoformat()
