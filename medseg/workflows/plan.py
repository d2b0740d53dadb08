"""Plan a training: a dataset in, a plan with its reasons out; ``train`` begins with the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.core.errors import FileError, SettingsError
from medseg.core.plan import Fingerprint, Plan, edited
from medseg.core.settings import TrainSettings
from medseg.datasets.dataset import Case, Split
from medseg.datasets.inspect import label_presence, verify_cases
from medseg.datasets.open import open_dataset
from medseg.datasets.scheme import training_scheme
from medseg.datasets.splits import folds, split_for
from medseg.inference.device import choose_device
from medseg.io.atomic import write_text
from medseg.planning.choices import takes_single_slices
from medseg.planning.explain import explain
from medseg.planning.fingerprint import CaseLook, take_fingerprint
from medseg.planning.memory import StepBytes, estimated_step_bytes
from medseg.planning.planner import Means, make_plan, means_for
from medseg.planning.presets import check_network
from medseg.training.probe import QuickerFormat, bf16_gain, bf16_pays, measured_step_bytes
from medseg.workflows.run import Progress, Run, is_spacious

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
# By name: the network, and the memory of a device in bytes that a step may fill.
PRESETS = {
    "small": ("unet", 4_000_000_000),
    "medium": ("residual_unet_m", 8_000_000_000),
    "large": ("residual_unet_l", 24_000_000_000),
}


def plan(
    dataset: str | Path,
    out: str | Path | None = None,
    *,
    config: str | Path | None = None,
    progress: Progress = lambda phase, done, total, note: None,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> dict[str, Any]:
    """Plan a training without training.

    Args:
        dataset: As for ``train``.
        out: JSON file for the plan; None writes none. ``train`` takes it as ``plan_file``.
        config: A preset by name, or a YAML file.
        progress: Called with (phase, done, total, note).
        stop: Asked after each case.
        **settings: As for ``train``: ``fold``, ``labels``, ``budget``, ``network``,
            ``target_memory`` ("8GB"), ``preset``, ``configuration``, ``device``, ``set`` ...

    Returns:
        ``{"plan": the plan as JSON types, "rows": [{"choice", "value", "reason"}, ...]}``.

    Raises:
        DatasetError: The dataset does not hold together.
        SettingsError: A setting is unknown or does not fit.
    """
    run = settled(dataset, Path(), settings, config=config, progress=progress, stop=stop)
    splits = splits_of(run)
    fingerprint = look_into(run, splits)
    changes = run.settings.plan_changes()
    made = decide(run, fingerprint, changes=changes, folds_left=len(splits))
    if out is not None:
        write_text(Path(out), made.to_json())
    return {
        "plan": json.loads(made.to_json()),
        "rows": [vars(row) for row in explain(made)],
        **({"file": str(out)} if out is not None else {}),
    }


def settled(
    dataset: str | Path,
    folder: Path,
    settings: dict[str, Any],
    *,
    config: str | Path | None = None,
    progress: Progress,
    stop: Callable[[], bool],
) -> Run:
    """A run that is to be planned: the dataset opened, the settings and their labels checked.

    Args:
        dataset: As for ``train``.
        folder: Of the run.
        settings: As for ``train``, with ``set``.
        config: A preset by name, or a YAML file.
        progress: Called with (phase, done, total, note).
        stop: Asked after each case.

    Raises:
        DatasetError: The dataset does not hold together.
        SettingsError: A setting is unknown or does not fit.
    """
    stated = {key: value for key, value in settings.items() if key != "set"}
    built = TrainSettings.build(config=config, pairs=settings.get("set", ()), stated=stated)
    data = open_dataset(dataset)
    check_network(built.network)
    return Run(
        dataset=data,
        labels=training_scheme(data, built.labels).labels,
        settings=built,
        folder=folder,
        device=choose_device(built.device),
        progress=progress,
        stop=stop,
    )


def splits_of(run: Run) -> dict[str, Split]:
    """Name -> split of each fold to train."""
    made_here = run.dataset.splits is None and run.settings.fold != "all-data"
    presence = label_presence(run.dataset) if made_here else None
    if run.settings.fold == "all":
        made = folds(run.dataset, seed=run.settings.seed, presence=presence)
        return {str(number): split for number, split in enumerate(made)}
    if run.settings.fold == "0" and run.dataset.splits is None and len(run.dataset.cases) < 2:
        _log.warning("one case alone: it is trained on, and nothing is left to validate with")
        return {"all-data": split_for(run.dataset, "all-data", run.settings.seed)}
    fold = run.settings.fold
    return {fold: split_for(run.dataset, fold, run.settings.seed, presence=presence)}


def look_into(run: Run, splits: Mapping[str, Split], *, keep: bool = False) -> Fingerprint:
    """Check every case, and take the fingerprint of those to learn from.

    Args:
        run: Whose dataset it is; with ``keep`` its ``kept`` holds small cases afterwards.
        splits: Which cases.
        keep: They will be preprocessed next.
    """
    everyone = sorted({c for split in splits.values() for c in split.train + split.validation})
    named = run.dataset.select(tuple(everyone))
    cases = _training_cases(run, splits)
    look = CaseLook(run.dataset, cases, run.labels)

    def look_and_keep(*seen: Any) -> None:
        look(*seen)
        if keep:
            run.kept.keep(*seen)

    report = run.phase("check")
    verify_cases(named, run.dataset, progress=report, look=look_and_keep).raise_problems()
    return take_fingerprint(
        run.dataset, cases, run.labels, progress=run.phase("fingerprint"), seen=look
    )


def _training_cases(run: Run, splits: Mapping[str, Split]) -> tuple[Case, ...]:
    return run.dataset.select(tuple(sorted({c for split in splits.values() for c in split.train})))


def decide(
    run: Run,
    fingerprint: Fingerprint,
    *,
    changes: dict[str, object],
    folds_left: int,
    trains_here: bool = True,
) -> Plan:
    """The plan of a run: that of ``--plan FILE``, or a new one.

    Args:
        run: Settings, labels, device and what is left of the time.
        fingerprint: Of the training cases.
        changes: Dotted keys of the plan to replace.
        folds_left: How many share the time.
        trains_here: On this device; else its precision is left to the one that trains.

    Raises:
        SettingsError: The plan is for other labels or channels, or a setting does not fit.
    """
    settings = run.settings
    if settings.plan_file is not None:
        made = _read_plan(Path(settings.plan_file), run, fingerprint)
        return edited(made, changes) if changes else made
    network, memory = settings.network, settings.target_memory
    target = None if memory is None else _bytes(memory)
    if settings.preset is not None:
        usual, own = PRESETS[settings.preset]
        network = usual if network == "unet" else network
        target = target or own
    means = _means(run, fingerprint, target=target, folds_left=folds_left)
    precision = _precision(run) if trains_here else {}

    def step_cost(draft: Plan) -> float:
        # It loads all that trains, of which a plan without a budget needs nothing.
        from medseg.training.budget import measure_step, typical_case

        case, spacious = typical_case(draft, fingerprint), is_spacious(run, draft)
        return measure_step(draft, case, run.device, spacious=spacious)

    quicker = QuickerFormat(step_cost)
    either = _may_choose_format(run, changes)
    made = make_plan(
        fingerprint,
        run.labels,
        means,
        network=network,
        width=settings.base_features,
        step_cost=quicker if either else step_cost,
        changes={**precision, **changes},
    )
    made = quicker.settled(made)
    if not precision or "training.precision" in changes:
        return made
    reason = f"a convolution learns {bf16_gain():.1f} times as fast as in fp32 on this processor"
    return made.model_copy(update={"reasons": {**made.reasons, "precision": reason}})


def _precision(run: Run) -> dict[str, object]:
    """bf16 on a processor that is quicker in it, unless other processors must get the same."""
    if run.settings.deterministic or not bf16_pays(run.device):
        return {}
    return {"training.precision": "bf16"}


def _may_choose_format(run: Run, changes: dict[str, object]) -> bool:
    """Whether the format of memory is chosen by time, on a CPU that need not repeat a run."""
    free = run.device.type == "cpu" and not run.settings.deterministic
    return free and "training.memory_format" not in changes


def _bytes(memory: str) -> int:
    # Beside it lie the options of a prediction, which load all that segments: it takes a while.
    from medseg.workflows.options import parse_bytes

    return parse_bytes(memory, name="--target-memory")


def _means(run: Run, fingerprint: Fingerprint, *, target: int | None, folds_left: int) -> Means:
    flat = takes_single_slices(fingerprint, run.settings.configuration)
    left_s = None if run.left_s is None else run.left_s / folds_left
    epochs = run.epochs if left_s is None else None
    usual = means_for(run.device.type, two_dimensional=flat, training_s=left_s)
    return replace(
        usual,
        epochs=epochs,
        processes=run.team.size,
        configuration=run.settings.configuration,
        target_bytes=target,
        step_bytes=_step_bytes(run.device, fingerprint),
    )


def _step_bytes(device: torch.device, fingerprint: Fingerprint) -> StepBytes:
    """Measured where there is a GPU, each size once; else estimated."""
    if device.type != "cuda":
        return estimated_step_bytes
    from medseg.training.budget import typical_case

    known: dict[str, int] = {}

    def measured(draft: Plan) -> int:
        size = draft.model_dump_json(include={"patch_size", "network", "training"})
        if size not in known:
            known[size] = measured_step_bytes(draft, typical_case(draft, fingerprint), device)
        return known[size]

    return measured


def _read_plan(path: Path, run: Run, fingerprint: Fingerprint) -> Plan:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(str(path), expected="a plan (JSON)", got=str(error)) from error
    made = Plan.from_json(text, source=str(path))
    ours = [(label.name, label.sources) for label in run.labels.labels]
    theirs = [(label.name, label.sources) for label in made.labels.labels]
    names = [facts.name for facts in fingerprint.channels]
    for what, wanted, got in (
        ("labels", ours, theirs),
        ("channels", names, [channel.name for channel in made.channels]),
    ):
        if wanted != got:
            raise SettingsError(
                f"--plan {path}",
                expected=f"a plan for the dataset's {what}: {_listed(wanted)}",
                got=_listed(got),
                cure="Plan this dataset (medseg plan), with the same --labels.",
            )
    return made


def _listed(parts: list[Any]) -> str:
    names = [part if isinstance(part, str) else f"{part[0]}={'+'.join(map(str, part[1]))}"
             for part in parts]  # fmt: skip
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
