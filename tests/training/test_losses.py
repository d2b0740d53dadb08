"""Losses against MONAI's and torch's, and against what ignoring and not knowing must mean."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import monai.losses
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from medseg.core.errors import SettingsError
from medseg.core.labels import Label, LabelSet
from medseg.core.plan import Plan, edited
from medseg.training import losses_sums
from medseg.training.losses import SegmentationLoss, alone
from medseg.training.losses_hardest import hardest
from medseg.training.targets import IGNORED, Targets
from tests.models import small_plan

CPU = torch.device("cpu")
SHAPE = (2, 7, 6, 5)
OVERLAP: dict[str, Any] = {"batch": True, "smooth_nr": 1e-5, "smooth_dr": 1e-5}


def plan_of(loss: str, *, labels: int = 2, **changes: Any) -> Plan:
    """A plan of labels ``a``, ``b`` ... on voxels of equal sides."""
    names = {n + 1: chr(ord("a") + n) for n in range(labels)}
    return small_plan(**{
        "labels": LabelSet.from_names(names).model_dump(), "network.classes": labels + 1,
        "training.loss.terms": loss, "spacing_mm": (1.0, 1.0, 1.0), **changes,
    })  # fmt: skip


def region_plan(loss: str, **changes: Any) -> Plan:
    """Regions ``whole`` of values 1 and 2, ``core`` of 2."""
    sources = {"whole": (1, 2), "core": (2,)}
    labels = [
        Label(value=n, name=name, colour=(0, 0, n), sources=own).model_dump()
        for n, (name, own) in enumerate(sources.items(), start=1)
    ]
    return small_plan(**{
        "labels": {"labels": labels}, "network.classes": 2, "activation": "regions",
        "training.loss.terms": loss, "spacing_mm": (1.0, 1.0, 1.0), **changes,
    })  # fmt: skip


def drawn(classes: int, *, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Logits that want a gradient, and labels below ``classes``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((shape[0], classes, *shape[1:]), generator=generator, requires_grad=True)
    return logits, torch.randint(0, classes, shape, generator=generator)


def ours(plan: Plan, logits: Tensor, labels: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    loss = SegmentationLoss(plan, CPU)([logits], Targets(labels, more.pop("known", None)), **more)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def close(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(a[0], b[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(a[1], b[1], atol=1e-7, rtol=1e-4)


def theirs(loss: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(logits, labels)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("shape", [(2, 8, 9, 7), (1, 6, 4, 1), (3, 5, 5, 5)])
@pytest.mark.parametrize("labels", [1, 4, 49])
def test_dice_and_cross_entropy_equal_monais(
    shape: tuple[int, ...], labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Runs so short that each sample takes several, the last one shorter.
    monkeypatch.setattr(losses_sums, "_RUN_CPU", 17 * (labels + 1))
    logits, truth = drawn(labels + 1, shape=shape)
    plan = plan_of("dice + cross_entropy", labels=labels)
    monais = monai.losses.DiceCELoss(
        include_background=False, softmax=True, to_onehot_y=True, **OVERLAP
    )
    close(ours(plan, logits, truth), theirs(monais, logits, truth[:, None]))


@pytest.mark.parametrize("loss", ["dice + ce", "dice + focal + topk"])
def test_other_devices_sum_up_to_the_same(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(4)
    labels[:, 2] = IGNORED
    expected = ours(plan_of(loss, labels=3), logits, labels)
    monkeypatch.setattr(losses_sums, "_adds_in_turn", lambda device: False)
    close(ours(plan_of(loss, labels=3), logits, labels), expected)


def test_half_precision_in_gives_half_precision_back() -> None:
    logits, labels = drawn(4)
    labels[:, 2] = IGNORED
    rounded = logits.detach().to(torch.bfloat16)
    plan = plan_of("dice + ce", labels=3)
    value, gradient = ours(plan, rounded.clone().requires_grad_(), labels)
    exact, fine = ours(plan, rounded.float().requires_grad_(), labels)
    # Summed in float32: only the gradient is rounded, to 8 bits.
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(gradient.float(), fine, rtol=2**-7, atol=1e-9)


MONAIS: dict[str, Any] = {
    "tversky": monai.losses.TverskyLoss(
        include_background=False, softmax=True, to_onehot_y=True, alpha=0.3, beta=0.7, **OVERLAP
    ),
    "generalised_dice": monai.losses.GeneralizedDiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, **OVERLAP
    ),
    "boundary": monai.losses.BoundaryLoss(
        include_background=False, softmax=True, to_onehot_y=True
    ),
    "hausdorff": monai.losses.HausdorffDTLoss(softmax=True, to_onehot_y=True, batch=True),
    "cldice": monai.losses.SoftclDiceLoss(
        include_background=False, softmax=True, to_onehot_y=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MONAIS)
def test_terms_equal_monais(name: str) -> None:
    logits, labels = drawn(4)
    found = ours(plan_of(name, labels=3), logits, labels)
    close(found, theirs(MONAIS[name], logits, labels[:, None]))


def test_focal_and_top_k_equal_what_their_papers_say() -> None:
    logits, labels = drawn(4)
    # MONAI takes the mean over classes, too.
    focal = monai.losses.FocalLoss(
        use_softmax=True, to_onehot_y=True, include_background=True, gamma=2.0
    )
    value, gradient = theirs(focal, logits, labels[:, None])
    close(ours(plan_of("focal", labels=3), logits, labels), (4 * value, 4 * gradient))
    each = cross_entropy(logits, labels, reduction="none").reshape(-1)
    mean = each.topk(round(0.1 * len(each))).values.mean()
    expected = mean, torch.autograd.grad(mean, logits)[0]
    close(ours(plan_of("topk", labels=3), logits, labels), expected)


def test_terms_add_up_with_their_weights_and_weights_can_grow() -> None:
    logits, labels = drawn(3)
    parts = [ours(plan_of(name), logits, labels)[0] for name in ("dice", "focal", "boundary")]
    both = plan_of("dice + 0.5*focal + 0.2->1*boundary")
    for progress, weight in ((0.0, 0.2), (0.25, 0.4), (1.0, 1.0)):
        expected = parts[0] + 0.5 * parts[1] + weight * parts[2]
        torch.testing.assert_close(ours(both, logits, labels, progress=progress)[0], expected)


def test_class_weights_equal_torchs() -> None:
    logits, labels = drawn(3)
    weighted = plan_of("ce", **{"training.loss.class_weights": "background=0.5, b=3"})
    value = cross_entropy(logits, labels, weight=torch.tensor([0.5, 1.0, 3.0]))
    close(ours(weighted, logits, labels), (value, torch.autograd.grad(value, logits)[0]))
    dice = monai.losses.DiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, reduction="none", **OVERLAP
    )(logits, labels[:, None]).flatten()
    plan = plan_of("dice", **{"training.loss.class_weights": "b=3"})
    torch.testing.assert_close(ours(plan, logits, labels)[0], (dice[0] + 3 * dice[1]) / 4)


REGION_MONAIS: dict[str, Any] = {
    "dice": monai.losses.DiceLoss(sigmoid=True, **OVERLAP),
    "ce": torch.nn.BCEWithLogitsLoss(),
    "tversky": monai.losses.TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, **OVERLAP),
    "generalised_dice": monai.losses.GeneralizedDiceLoss(sigmoid=True, **OVERLAP),
    "focal": monai.losses.FocalLoss(gamma=2.0),
    "boundary": monai.losses.BoundaryLoss(sigmoid=True),
    "hausdorff": monai.losses.HausdorffDTLoss(sigmoid=True, include_background=True, batch=True),
    "cldice": monai.losses.SoftclDiceLoss(sigmoid=True),
}  # fmt: skip


@pytest.mark.parametrize("name", REGION_MONAIS)
def test_terms_of_regions_equal_monais(name: str) -> None:
    logits, _ = drawn(2)
    cells = drawn(3, seed=1)[1]
    truth = torch.stack((cells > 0, cells > 1), dim=1).float()
    close(ours(region_plan(name), logits, cells), theirs(REGION_MONAIS[name], logits, truth))


ALL = "dice + ce + focal + topk + tversky + generalised_dice + boundary"


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("loss", [ALL, "hausdorff", "cldice"])
def test_ignored_voxels_change_nothing(regions: bool, loss: str) -> None:
    plan = region_plan(loss) if regions else plan_of(loss)
    logits, _ = drawn(2 if regions else 3)
    labels = drawn(3, seed=1)[1]
    hidden = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    labels[hidden] = IGNORED
    value, gradient = ours(plan, logits, labels)
    assert float(gradient[hidden[:, None].expand_as(gradient)].abs().max()) == 0
    assert float(gradient.abs().max()) > 0
    if loss != ALL:
        # Their distances and centre lines see what the network says there.
        return
    changed = torch.where(hidden[:, None], 5 - 3 * logits, logits).detach().requires_grad_()
    again, other = ours(plan, changed, labels)
    assert torch.equal(value, again)
    assert torch.equal(gradient, other)


@pytest.mark.parametrize("regions", [False, True])
def test_cross_entropy_and_dice_without_ignored_voxels_by_hand(regions: bool) -> None:
    # Leaving voxels out is the same as never having had them.
    plan = region_plan("dice + ce + topk") if regions else plan_of("dice + ce + topk")
    logits, _ = drawn(2 if regions else 3, shape=(1, 6, 5, 4))
    labels = drawn(3, seed=1, shape=(1, 6, 5, 4))[1]
    labels[:, 3:] = IGNORED
    part, whole = ours(plan, logits[:, :, :3], labels[:, :3])[0], ours(plan, logits, labels)[0]
    torch.testing.assert_close(part, whole)


def test_everything_ignored_is_no_nan() -> None:
    logits, labels = drawn(3)
    value, gradient = ours(plan_of(ALL), logits, torch.full_like(labels, IGNORED))
    assert bool(value.isfinite())
    assert float(gradient.abs().max()) == 0


def test_what_was_not_annotated_is_one_with_background() -> None:
    """The marginal loss by hand: probabilities of background and the unknown label are added."""
    logits, labels = drawn(4)
    known = torch.tensor([[True, True, True], [True, False, True]])
    found = ours(plan_of("dice + ce", labels=3), logits, labels, known=known)
    p = logits.softmax(dim=1)
    merged = torch.stack((p[1, 0] + p[1, 2], p[1, 1], torch.zeros_like(p[1, 0]), p[1, 3]))
    p = torch.stack((p[0], merged))
    truth = labels.clone()
    truth[1][truth[1] == 2] = 0
    hot = one_hot(truth, 4).movedim(-1, 1)
    ce = -(hot * p.clamp(min=1e-30).log()).sum(dim=1).mean()
    scores = []
    for n in (1, 2, 3):
        who = slice(0, 1) if n == 2 else slice(0, 2)
        hit = (p[who, n] * hot[who, n]).sum()
        scores.append((2 * hit + 1e-5) / (p[who, n].sum() + hot[who, n].sum() + 1e-5))
    expected = 1 - torch.stack(scores).mean() + ce
    close(found, (expected, torch.autograd.grad(expected, logits)[0]))


@pytest.mark.parametrize("loss", ["dice", "tversky", "generalised_dice", "ce", "dice + boundary"])
def test_an_unknown_label_can_change_places_with_background(loss: str) -> None:
    logits, labels = drawn(4)
    known = torch.tensor([[True, False, True]] * len(labels))
    value, gradient = ours(plan_of(loss, labels=3), logits, labels, known=known)
    # Together as probable as before, but shared otherwise.
    both = logits[:, [0, 2]].logsumexp(dim=1)
    moved = logits.detach().clone()
    moved[:, 0], moved[:, 2] = both.detach() + np.log(0.9), both.detach() + np.log(0.1)
    other, _ = ours(plan_of(loss, labels=3), moved.requires_grad_(), labels, known=known)
    torch.testing.assert_close(value, other)
    # Along that exchange the gradient is 0: d/dz_bg / p_bg = d/dz_u / p_u.
    p = logits.softmax(dim=1)
    torch.testing.assert_close(gradient[:, 0] * p[:, 2], gradient[:, 2] * p[:, 0])


def test_an_unknown_region_has_no_gradient() -> None:
    logits, _ = drawn(2)
    cells = drawn(3, seed=1)[1]
    known = torch.tensor([[True, False], [True, True]])
    _, gradient = ours(region_plan(ALL), logits, cells, known=known)
    assert float(gradient[0, 1].abs().max()) == 0
    assert float(gradient[0, 0].abs().max()) > 0
    assert float(gradient[1, 1].abs().max()) > 0


def test_a_label_that_no_sample_knows_leaves_the_mean() -> None:
    logits, labels = drawn(3)
    known = torch.tensor([[True, False]] * 2)
    value, _ = ours(plan_of("dice"), logits, labels, known=known)
    merged = torch.stack((logits[:, [0, 2]].logsumexp(dim=1), logits[:, 1]), dim=1)
    alone, _ = ours(plan_of("dice", labels=1), merged, labels * (labels == 1))
    torch.testing.assert_close(value, alone)


def test_distances_count_in_units_of_the_finest_side() -> None:
    labels = torch.zeros(1, 5, 4, 6, dtype=torch.long)
    labels[:, 1, 1, 2] = 1
    logits = torch.zeros(1, 2, 5, 4, 6, requires_grad=True)
    plan = plan_of("boundary", labels=1, spacing_mm=(3.0, 1.5, 2.25))
    place = np.indices((5, 4, 6)).reshape(3, -1).T - np.array([1, 1, 2])
    far = np.linalg.norm(place * np.array([2.0, 1.0, 1.5]), axis=1)
    assert float(ours(plan, logits, labels)[0]) == pytest.approx(0.5 * far.mean(), rel=1e-5)


def test_deep_supervision_weighs_by_halves() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (1, 8, 8, 4), generator=generator)
    fine = torch.randn(1, 3, 8, 8, 4, generator=generator)
    coarse = torch.randn(1, 3, 4, 4, 4, generator=generator)
    plan = plan_of("dice + ce")
    loss, few = SegmentationLoss(plan, CPU), labels[:, ::2, ::2]
    total = loss([fine, coarse], Targets(labels))
    expected = (2 * loss([fine], Targets(labels)) + loss([coarse], Targets(few))) / 3
    torch.testing.assert_close(total, expected)
    # Borders are looked at in full resolution alone, with their whole weight.
    border = SegmentationLoss(plan_of("boundary"), CPU)
    torch.testing.assert_close(
        border([fine, coarse], Targets(labels)), border([fine], Targets(labels))
    )


def test_perfect_and_empty_by_hand() -> None:
    labels = torch.zeros(1, 4, 3, 2, dtype=torch.long)
    labels[0, 0] = 1
    sure = (one_hot(labels, 3).permute(0, 4, 1, 2, 3) * 60.0).requires_grad_()
    # Label b is nowhere and nowhere predicted: its Dice counts as 1, not as 0.
    assert float(ours(plan_of("dice + ce"), sure, labels)[0]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("training.loss", "dice + foo", "each of dice, generalised_dice.*got 'dice . foo'"),
        ("training.loss", "dice*2", "with a weight where wanted"),
        ("training.loss", "0*dice", "a weight above 0"),
        ("training.loss.class_weights", "kidney=2", "class_weights names unknown labels: kidney"),
        ("training.loss.class_weights", "low", "label=weight"),
        ("training.loss.class_weights", "low=1,low=2", "each label once"),
    ],
)  # fmt: skip
def test_a_wrong_loss_is_one_clear_error(key: str, value: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        edited(small_plan(), {key: value})


def test_regions_have_no_background_to_weigh() -> None:
    with pytest.raises(SettingsError, match="class_weights names unknown labels: background"):
        region_plan("dice", **{"training.loss.class_weights": "background=2"})


@pytest.mark.parametrize("loss", [ALL.replace(" + topk", ""), "cldice", "hausdorff"])
def test_sums_of_processes_make_the_loss_of_the_whole_batch(loss: str) -> None:
    logits, labels = drawn(3)
    labels[0, :2], labels[1, :, 4:] = IGNORED, IGNORED
    known, plan = torch.tensor([[True, False], [True, True]]), plan_of(loss)
    sums: list[Tensor] = []

    def half(n: int, total: Any) -> Tensor:
        one = SegmentationLoss(plan, CPU, total=total)
        return one([logits[n : n + 1]], Targets(labels[n : n + 1], known[n : n + 1]))

    for n in range(2):
        half(n, lambda own: sums.append(own) or own)
    whole, _ = ours(plan, logits, labels, known=known)
    for n in range(2):
        torch.testing.assert_close(half(n, lambda own, n=n: own + sums[1 - n]), whole)


class Meeting:
    """Adds up tensors of threads that stand for processes."""

    def __init__(self, size: int) -> None:
        self.barrier, self.given = Barrier(size, timeout=30), [torch.zeros(0)] * size

    def total(self, rank: int, own: Tensor) -> Tensor:
        self.given[rank] = own.detach()
        self.barrier.wait()
        others = sum(one for n, one in enumerate(self.given) if n != rank)
        self.barrier.wait()
        return own + others


def together(plan: Plan, logits: Tensor, targets: list[Targets]) -> list[Tensor]:
    """The loss that each of several processes finds, each with a sample of its own."""
    meeting = Meeting(len(targets))

    def one(rank: int) -> Tensor:
        loss = SegmentationLoss(
            plan, CPU, total=partial(meeting.total, rank), processes=len(targets)
        )
        return loss([logits[rank : rank + 1]], targets[rank])

    with ThreadPoolExecutor(len(targets)) as pool:
        return list(pool.map(one, range(len(targets))))


@pytest.mark.parametrize("loss", ["topk", "dice + 0.5*topk"])
@pytest.mark.parametrize("regions", [False, True])
def test_the_worst_voxels_are_those_of_all_processes(loss: str, regions: bool) -> None:
    plan = region_plan(loss) if regions else plan_of(loss)
    classes = 2 if regions else 3
    logits, labels = drawn(classes, shape=(3, 7, 6, 5))
    labels = drawn(3, seed=1, shape=(3, 7, 6, 5))[1]
    labels[0, :3], labels[2] = IGNORED, IGNORED
    with torch.no_grad():
        logits[1] *= 5  # most of the worst are in one process; a third has none at all
    found = together(plan, logits, [Targets(labels[n : n + 1]) for n in range(3)])
    whole, expected = ours(plan, logits, labels)
    for one in found:
        torch.testing.assert_close(one.detach(), whole)
    # Each derives the whole loss by its own part.
    gradient = torch.autograd.grad(found, logits)[0]
    torch.testing.assert_close(gradient, expected)


def test_equal_losses_at_the_last_rank_share_it() -> None:
    # Of ten voxels that count the five worst: 7, 5, 5, and two of three that have lost 3.
    losses = torch.tensor([3.0, 0.0, 5.0, 3.0, -1.0, 7.0, 0.5, 3.0, 5.0, 0.0, 1.0])
    losses.requires_grad_()
    found = hardest(losses, 0.5, total=alone)
    torch.testing.assert_close(found.detach(), torch.tensor([7 + 5 + 5 + 2 * 3.0, 5.0]))
    gradient = torch.autograd.grad(found[0], losses)[0]
    third = 2 / 3
    expected = [third, 0, 1, third, 0, 1, 0, third, 1, 0, 0]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_a_loss_that_is_no_number_is_seen() -> None:
    losses = torch.tensor([3.0, -torch.nan, 1.0, 2.0])
    assert not bool(hardest(losses, 0.25, total=alone)[0].isfinite())
    nothing = hardest(torch.full((4,), -1.0), 0.5, total=alone)
    assert nothing.tolist() == [0.0, 0.0]


def test_losses_as_text_and_as_json_are_the_same() -> None:
    plan = edited(small_plan(), {"training.loss": "Dice + 0.5 * focal + 0->1*boundary"})
    rows = [{"name": "dice"}, {"name": "focal", "weight": 0.5}]
    rows.append({"name": "boundary", "weight": 0, "end_weight": 1})
    assert edited(small_plan(), {"training.loss": rows}) == plan
    assert Plan.from_json(plan.to_json()) == plan
