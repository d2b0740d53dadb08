"""Train small models of every kind with nnU-Net's own code, on phantoms, and predict with it.

    pip install nnunetv2 torch==2.13.0          (an environment of its own, without medseg)
    python benchmarks/peers/train_nnunet.py OUT [--kinds regions plane] [--goal 0.8]

writes OUT/<kind>/results/.../plans.json, dataset.json and fold_*/checkpoint_final.pth, the
held-out phantoms in OUT/<kind>/images and nnU-Net's masks of them in OUT/<kind>/predictions.
Its preprocessing, augmentation, network, loss, training step, sliding window with mirroring
and export run unchanged. What differs from ``nnUNetv2_train``: small hand-written plans, AdamW
(SGD needs thousands of steps), and the end: as soon as each label of the training phantoms has
the Dice of --goal by nnU-Net's own prediction. A kind that does not get there ends with a word.
``agreement.py`` then runs the same models in medseg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from kinds import KINDS, plans_of
from workshop import (
    ALL_KINDS,
    ENDING,
    HELD_OUT,
    Workshop,
    intensities_of,
    preprocess,
    save,
    write_phantoms,
)

CHECKED = 3
_EPOCH_ITERATIONS, _EPOCHS, _LAST_ITERATIONS = 50, 16, 50
_FAST, _SLOW = 4e-3, 5e-4


@dataclass(frozen=True)
class Goal:
    """When a training ends: the Dice of each label, or the minutes that it may take."""

    dice: float
    minutes: float


def make_trainer(shop: Workshop, plans: dict[str, Any], stage: str, fold: int) -> Any:
    """nnU-Net's trainer, with AdamW in the place of SGD."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    description = json.loads((shop.raw / "dataset.json").read_text(encoding="utf-8"))
    settings = {**json.loads(json.dumps(plans)), "continue_training": False}
    trainer = nnUNetTrainer(settings, stage, fold, description, torch.device("cpu"))

    def optimizers() -> tuple[Any, Any]:
        adam = torch.optim.AdamW(trainer.network.parameters(), lr=_FAST, weight_decay=1e-4)
        return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda _: 1.0)

    trainer.configure_optimizers = optimizers
    if shop.kind.mirror_axes is not None:
        plan_augmentation = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size

        def mirror_less() -> tuple[Any, ...]:
            planned = plan_augmentation()
            trainer.inference_allowed_mirroring_axes = shop.kind.mirror_axes
            return *planned[:-1], shop.kind.mirror_axes

        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = mirror_less
    return trainer


def make_predictor(trainer: Any = None, folder: Path | None = None) -> Any:
    """nnU-Net's predictor as ``nnUNetv2_predict`` sets it up, mirroring on."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    if folder is not None:
        predictor.initialize_from_trained_model_folder(str(folder), None)
        return predictor
    weights = {k: v.detach().clone() for k, v in trainer.network.state_dict().items()}
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [weights],
        trainer.dataset_json, type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    return predictor


def predict(
    shop: Workshop, predictor: Any, images: Path, cases: list[str], out: Path,
    *, previous: Path | None = None,
) -> None:  # fmt: skip
    """Masks of some cases by nnU-Net, in this process."""
    out.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(
        [shop.files(images, case) for case in cases], [str(out / case) for case in cases],
        folder_with_segs_from_prev_stage=None if previous is None else str(previous),
    )  # fmt: skip


def dice(shop: Workshop, found: Path, truth: Path, cases: list[str]) -> dict[str, float]:
    """Dice of each label or region over some cases; ignored voxels do not count."""
    masks = [np.asarray(nib.load(found / f"{case}{ENDING}").dataobj) for case in cases]
    wanted = [np.asarray(nib.load(truth / f"{case}{ENDING}").dataobj) for case in cases]
    ignored = shop.kind.labels.get("ignore", -1)
    scores = {}
    for name, values in shop.kind.labels.items():
        if name in ("background", "ignore"):
            continue
        both = total = 0
        for ours, theirs in zip(masks, wanted, strict=True):
            counts = theirs != ignored
            one, other = np.isin(ours, values) & counts, np.isin(theirs, values) & counts
            both, total = both + int((one & other).sum()), total + int(one.sum() + other.sum())
        if total:
            scores[name] = 2.0 * both / total
    return scores


def stage_masks(shop: Workshop, stage: str) -> Path | None:
    """Where the masks of the stage before this one lie."""
    previous = shop.kind.stages[stage].previous
    return None if previous is None else shop.root / "checks" / previous


def steps(trainer: Any, count: int, rate: float) -> float:
    """Some of nnU-Net's training steps; the mean loss."""
    trainer.network.train()
    trainer.set_deep_supervision_enabled(True)
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    losses = [
        float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(count)
    ]
    return float(np.mean(losses))


def check(shop: Workshop, trainer: Any, stage: str, cases: list[str]) -> dict[str, float]:
    """Dice of training phantoms by nnU-Net's own prediction."""
    trainer.set_deep_supervision_enabled(False)
    out = shop.root / "checks" / stage
    images = shop.raw / "imagesTr"
    predictor = make_predictor(trainer)
    predictor.use_mirroring = not shop.kind.quick_checks
    predict(shop, predictor, images, cases, out, previous=stage_masks(shop, stage))
    return dice(shop, out, shop.raw / "labelsTr", cases)


def train(shop: Workshop, plans: dict[str, Any], stage: str, *, fold: int, goal: Goal) -> bool:
    """Train one fold until the goal or out of time; its checkpoint is written either way."""
    import torch

    np.random.seed(fold)  # noqa: NPY002 (nnU-Net draws from it)
    torch.manual_seed(fold)
    started = time.perf_counter()
    with quiet(shop.root / "log.txt"):
        trainer = make_trainer(shop, plans, stage, fold)
        trainer.on_train_start()
    reached = False
    for epoch in range(_EPOCHS):
        with quiet(shop.root / "log.txt"):
            loss = steps(trainer, _EPOCH_ITERATIONS, _FAST if epoch < 10 else _FAST / 3)
            scores = check(shop, trainer, stage, shop.cases()[:CHECKED])
        say(shop, stage, f"fold {fold} step {(epoch + 1) * _EPOCH_ITERATIONS}: loss {loss:.3f}, "
            f"{_told(scores)}, {time.perf_counter() - started:.0f} s")  # fmt: skip
        reached = min(scores.values()) >= goal.dice + 0.05
        if reached or time.perf_counter() - started > 60.0 * goal.minutes:
            break
    with quiet(shop.root / "log.txt"):
        steps(trainer, _LAST_ITERATIONS, _SLOW)
        scores = check(shop, trainer, stage, shop.cases())
        trainer.set_deep_supervision_enabled(True)
        trainer.current_epoch = 1
        trainer.on_train_end()
        if shop.kind.stages[stage].following:
            hand_on(shop, trainer, shop.kind.stages[stage].following)
    reached = min(scores.values()) >= goal.dice
    word = "reached" if reached else "NOT REACHED"
    say(
        shop, stage, f"fold {fold}: goal {goal.dice} {word}, all training phantoms: {_told(scores)}"
    )
    return reached


def hand_on(shop: Workshop, trainer: Any, following: str | None) -> None:
    """Give the next stage of a cascade its training input, as nnU-Net's validation does."""
    import torch
    from nnunetv2.inference.export_prediction import resample_and_save
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    assert following is not None
    trainer.set_deep_supervision_enabled(False)
    predictor = make_predictor(trainer)
    identifier = trainer.plans_manager.get_configuration(following).data_identifier
    folder = shop.preprocessed / identifier
    dataset_class = infer_dataset_class(str(folder))
    here = dataset_class(trainer.preprocessed_dataset_folder, shop.cases())
    there = dataset_class(str(folder), shop.cases())
    out = Path(trainer.output_folder_base) / "predicted_next_stage" / following
    out.mkdir(parents=True, exist_ok=True)
    for case in shop.cases():
        data, _, _, properties = here.load_case(case)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data[:]))
        shape = there.load_case(case)[0].shape[1:]
        resample_and_save(
            logits, list(shape), str(out / case), trainer.plans_manager,
            trainer.configuration_manager, properties, trainer.dataset_json, 1, dataset_class,
        )  # fmt: skip


def prepare_for_timing(shop: Workshop) -> None:
    """Larger tiles than in training, no mirroring: the network is convolutional."""
    import torch

    for path in shop.results.glob("*/plans.json"):
        plans = json.loads(path.read_text(encoding="utf-8"))
        for configuration in plans["configurations"].values():
            configuration["patch_size"] = list(shop.kind.timed_patch or ())
        save(path, plans)
    for path in shop.results.glob("*/fold_*/checkpoint_final.pth"):
        checkpoint = torch.load(path, weights_only=False)
        checkpoint["inference_allowed_mirroring_axes"] = None
        torch.save(checkpoint, path)


def predict_held_out(shop: Workshop) -> dict[str, float]:
    """The held-out phantoms by each stage; the last one's masks are ``predictions``."""
    names = [f"held_{number:03d}" for number in range(HELD_OUT)]
    previous = None
    with quiet(shop.root / "log.txt"):
        for stage in shop.kind.stages:
            last = stage == list(shop.kind.stages)[-1]
            out = shop.root / ("predictions" if last else f"predictions_{stage}")
            predictor = make_predictor(folder=shop.trained(stage))
            predict(shop, predictor, shop.root / "images", names, out, previous=previous)
            previous = out
    return dice(shop, shop.root / "predictions", shop.root / "truth", names)


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """What nnU-Net prints goes to a file."""
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def say(shop: Workshop, stage: str, text: str) -> None:
    """A line for the user."""
    print(f"{shop.name} {stage}: {text}", flush=True)


def _told(scores: dict[str, float]) -> str:
    return "Dice " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items())


def run(root: Path, name: str, *, goal: Goal) -> bool:
    """Everything for one kind; True where each stage and fold reached the goal."""
    kind = ALL_KINDS[name]
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    shop = Workshop(root, name, kind)
    write_phantoms(shop)
    plans = plans_of(kind, shop.dataset, intensities_of(shop))
    preprocess(shop, json.loads(json.dumps(plans)))
    reached = True
    for stage in kind.stages:
        for fold in range(kind.folds):
            reached = train(shop, plans, stage, fold=fold, goal=goal) and reached
    if kind.timed_patch:
        prepare_for_timing(shop)
    # Larger tiles than the small phantoms hold: what the timed scan gives is told there.
    where = "held out, in tiles for timing" if kind.timed_patch else "held out"
    say(shop, where, _told(predict_held_out(shop)))
    return reached


def main() -> None:
    """Train the kinds one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(ALL_KINDS))
    parser.add_argument("--goal", type=float, default=0.8)
    parser.add_argument("--minutes", type=float, default=20.0, help="for each stage and fold")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if len(options.kinds) > 1:
        # nnU-Net reads its folders from the environment at import: a process a kind.
        import subprocess

        failed = []
        for name in options.kinds:
            command = [sys.executable, __file__, str(options.out), "--kinds", name,
                       "--goal", str(options.goal), "--minutes", str(options.minutes),
                       "--threads", str(options.threads)]  # fmt: skip
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
        print(f"did not reach the goal: {', '.join(failed)}" if failed else "all reached the goal")
        sys.exit(1 if failed else 0)
    name = options.kinds[0]
    root = options.out.resolve() / name
    Workshop(root, name, ALL_KINDS[name])  # sets nnU-Net's folders before torch and it are imported
    import torch

    torch.set_num_threads(options.threads)
    sys.exit(0 if run(root, name, goal=Goal(options.goal, options.minutes)) else 1)


if __name__ == "__main__":
    main()
