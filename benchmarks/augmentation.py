"""Varying a batch of 2 x 128^3: medseg against batchgeneratorsv2 and MONAI, on a CPU.

    python benchmarks/augmentation.py [--peer PYTHON] [--rounds 8] [--threads 1]

The full policy is the one that nnU-Net trains 3D networks with: rotation, scaling, noise, blur,
brightness, contrast, low resolution, two gammas and mirroring, each as often as nnU-Net takes
it. What a step does at most matters little when it comes once in ten samples; so each tool
draws as it would in training, and many batches are timed; then every step is taken for every
sample. Boxes that hold the turned patch are in memory: reading is not part of it.

PYTHON is the interpreter of an environment with nnunetv2; its own ``get_training_transforms``
is run, without its resampling of labels for deep supervision. MONAI turns the patch within
itself, as is usual there. All run on as many threads as ``--threads`` says (nnU-Net's workers
have one each). The share of a training step is measured on a plan of medseg's planner.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PATCH = (128, 128, 128)
BATCH = 2
# nnU-Net rotates by at most 30 degrees about each axis, and cuts a box that holds all of it.
DEGREES, SIDE = 30.0, 220
# It rotates one sample in five, and scales one in five.
MOVED = 1 - 0.8**2


def seconds(
    make: Callable[..., Any], rounds: int, *, fresh: Callable[[], tuple[Any, ...]] = tuple
) -> tuple[float, float]:
    """Mean wall and CPU time of a batch; the first, and what ``fresh`` takes, are left out."""
    make(0, *fresh())
    wall = cpu = 0.0
    for number in range(1, rounds + 1):
        given = fresh()
        started, used = time.perf_counter(), time.process_time()
        make(number, *given)
        wall += time.perf_counter() - started
        cpu += time.process_time() - used
    return wall / rounds, cpu / rounds


def arrays(side: int = SIDE) -> tuple[Any, Any]:
    """A smooth volume (1, side, side, side) with noise, and a label of four classes."""
    rng = np.random.default_rng(0)
    line = np.linspace(-3, 3, side, dtype=np.float32)
    ball = np.exp(-(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2) / 3)
    image = ball * 3 - 1 + rng.standard_normal((side,) * 3, dtype=np.float32) * 0.2
    return image[None], (ball * 4).astype(np.uint8)[None]


def medseg_batches(rounds: int, every: bool) -> tuple[float, float]:
    import torch

    from medseg.core.augmentation_plan import AugmentationPlan, Chance
    from medseg.transforms.augment import draw_variation
    from medseg.transforms.augment_space import needed_box, sample_patch
    from medseg.transforms.augment_values import vary_intensity

    def chance(usual: float, low: float, high: float) -> Chance:
        return Chance(probability=1.0 if every else usual, low=low, high=high)

    plan = AugmentationPlan(
        rotation_degrees=DEGREES, scale=(0.7, 1.4), affine_probability=1.0 if every else MOVED,
        mirror_axes=(0, 1, 2), intensity_probability=1.0,
        noise=chance(0.1, 0, 0.3), blur=chance(0.2, 0.5, 1.0), gain=chance(0.15, 0.75, 1.25),
        contrast=chance(0.15, 0.75, 1.25), coarseness=chance(0.25, 1.0, 2.0),
        gamma=chance(0.3, 0.7, 1.5), inverse_gamma=chance(0.1, 0.7, 1.5),
    )  # fmt: skip
    image, label = (torch.from_numpy(array) for array in arrays())
    centre = (np.array(image.shape[1:]) - 1) / 2

    def make(number: int) -> Any:
        images, labels, drawn = [], [], []
        for sample in range(BATCH):
            rng = np.random.default_rng([0, number, sample])
            one = draw_variation(rng, plan, spatial_dims=3, spacing=np.ones(3))
            low, high = needed_box(centre, one, PATCH)
            low, high = np.clip(low, 0, SIDE), np.clip(high, 0, SIDE)
            cut = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            x, y = sample_patch(
                [image[:, *cut], label[:, *cut]], centre - low, one,
                patch=PATCH, nearest=(False, True),
            )  # fmt: skip
            images.append(x)
            labels.append(y)
            drawn.append(one)
        return vary_intensity(torch.stack(images), drawn), torch.stack(labels)

    return seconds(make, rounds)


def monai_batches(rounds: int, every: bool) -> tuple[float, float]:
    import monai.transforms as mt
    import torch

    keys, radians = ["image", "label"], float(np.deg2rad(DEGREES))

    def often(usual: float) -> float:
        return 1.0 if every else usual

    chain = mt.Compose([
        # The patch is cut first, so that nothing is resampled where nothing is turned.
        mt.CenterSpatialCropd(keys, PATCH),
        mt.RandAffined(
            keys, prob=often(MOVED), rotate_range=(radians,) * 3, scale_range=((-0.3, 0.4),) * 3,
            mode=("bilinear", "nearest"), padding_mode="zeros",
        ),
        mt.RandGaussianNoised("image", prob=often(0.1), std=0.3),
        mt.RandGaussianSmoothd(
            "image", prob=often(0.2), sigma_x=(0.5, 1), sigma_y=(0.5, 1), sigma_z=(0.5, 1)
        ),
        mt.RandScaleIntensityd("image", factors=0.25, prob=often(0.15)),
        mt.RandScaleIntensityFixedMeand(
            "image", factors=0.25, preserve_range=True, prob=often(0.15)
        ),
        mt.RandSimulateLowResolutiond("image", prob=often(0.25), zoom_range=(0.5, 1.0)),
        mt.RandAdjustContrastd("image", prob=often(0.3), gamma=(0.7, 1.5), retain_stats=True),
        mt.RandAdjustContrastd(
            "image", prob=often(0.1), gamma=(0.7, 1.5), retain_stats=True, invert_image=True
        ),
        *(mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
    ])  # fmt: skip
    image, label = (torch.from_numpy(array) for array in arrays())

    def make(number: int) -> Any:
        chain.set_random_state(seed=number)
        done = [chain({"image": image, "label": label}) for _ in range(BATCH)]
        return [torch.stack([one[key] for one in done]) for key in keys]

    return seconds(make, rounds)


def nnunet_batches(rounds: int, every: bool) -> tuple[float, float]:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    radians = float(np.deg2rad(DEGREES))
    chain = nnUNetTrainer.get_training_transforms(
        np.array(PATCH), (-radians, radians), None, (0, 1, 2), False
    )
    if every:
        for step in chain.transforms:
            for name in ("apply_probability", "p_rotation", "p_scaling", "p_per_channel"):
                if hasattr(step, name):
                    setattr(step, name, 1.0)
            if hasattr(getattr(step, "transform", None), "p_per_channel"):
                step.transform.p_per_channel = 1.0
    image, label = (torch.from_numpy(array) for array in arrays())

    def make(number: int, *boxes: Any) -> Any:
        torch.manual_seed(number)
        done = [chain(image=x, segmentation=y) for x, y in boxes]
        return [torch.stack([one[key] for one in done]) for key in ("image", "segmentation")]

    def fresh() -> tuple[Any, ...]:
        # Its steps work in place, on what its loader has just read.
        return tuple((image.clone(), label.to(torch.int16)) for _ in range(BATCH))

    return seconds(make, rounds, fresh=fresh)


def share_of_step(rounds: int) -> tuple[float, float]:
    """Share of a whole step that its batch takes, of wall and of CPU time, on a planner's plan."""
    import torch

    from medseg.core.labels import LabelSet
    from medseg.core.plan import ChannelFacts, Fingerprint
    from medseg.planning.planner import make_plan, means_for
    from medseg.training.budget import typical_case
    from medseg.training.loader import Batches
    from medseg.training.step import Stepper, new_state, update_average

    labels = LabelSet.from_names({1: "anterior", 2: "posterior"})
    facts = ChannelFacts(
        name="MRI", modality="MR", foreground_mean=1, foreground_std=1, percentile_00_5=0,
        percentile_99_5=9, zero_share=0,
    )  # fmt: skip
    fingerprint = Fingerprint(
        cases=200, two_dimensional=False, median_spacing_mm=(1, 1, 1), low_spacing_mm=(1, 1, 1),
        median_shape=(36, 50, 35), max_shape=(43, 59, 47), channels=(facts,),
        label_voxel_share=dict.fromkeys(labels.names, 0.02),
        label_cases=dict.fromkeys(labels.names, 200),
    )  # fmt: skip
    means = means_for("cpu", two_dimensional=False, training_s=None)
    plan = make_plan(fingerprint, labels, means, width=16)
    case, device = typical_case(plan, fingerprint), torch.device("cpu")
    batches = Batches([case], plan, seed=0, device=device)
    state = new_state(plan, seed=0, device=device)
    step_once = Stepper(state, plan, device)

    def learn(number: int, *batch: Any) -> None:
        step_once([batch], 1e-6)
        update_average(state, plan.training.ema_decay)

    made, cpu_made = seconds(batches.batch, 4 * rounds)
    learned, cpu_learned = seconds(learn, rounds, fresh=lambda: batches.batch(0))
    return made / (made + learned), cpu_made / (cpu_made + cpu_learned)


RUNS = {"medseg": medseg_batches, "MONAI": monai_batches, "batchgeneratorsv2": nnunet_batches}


def compare(options: argparse.Namespace, every: bool) -> None:
    """Time each tool in a process of its own."""
    own = [__file__, "--rounds", str(options.rounds), "--threads", str(options.threads)]
    own += ["--every"] * every
    took = {}
    for name in RUNS:
        python = options.peer if name == "batchgeneratorsv2" else sys.executable
        if python:
            command = [python, *own, "--run", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            took[name] = json.loads(done.stdout.splitlines()[-1])
    how = "every step of every sample" if every else "steps as often as nnU-Net takes them"
    print(f"{how}, {options.threads} threads:")
    for name, (wall, cpu) in took.items():
        ours = took["medseg"]
        ratio = f", {wall / ours[0]:.2f}x, CPU {cpu / ours[1]:.2f}x" if name != "medseg" else ""
        print(f"  {name}: {wall:.3f} s a batch, CPU {cpu:.3f} s{ratio}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="python of an environment with nnunetv2")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--every", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        import torch

        torch.set_num_threads(options.threads)
        print(json.dumps(RUNS[options.run](options.rounds, options.every)))
        return
    for every in (False, True):
        compare(options, every)
    wall, cpu = share_of_step(options.rounds)
    print(
        f"share of a training step of the planner's plan (2 x 40 x 56 x 40, 16 channels): "
        f"{100 * wall:.1f} % of its time, {100 * cpu:.1f} % of its CPU time"
    )


if __name__ == "__main__":
    main()
