"""Losses against MONAI's."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from medseg.training.losses import deep_supervision_loss, dice_ce_loss


@pytest.mark.parametrize("shape", [(2, 3, 8, 9, 7), (1, 5, 6, 4, 1), (3, 2, 5, 5, 5)])
def test_equals_monais_dice_ce_with_gradients(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, requires_grad=True)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    ours = dice_ce_loss(logits, labels)
    (gradient,) = torch.autograd.grad(ours, logits)
    theirs = DiceCELoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=True,
        smooth_nr=1e-5, smooth_dr=1e-5,
    )(logits, labels[:, None])  # fmt: skip
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-4)


def test_perfect_and_empty_by_hand() -> None:
    labels = torch.zeros(1, 4, 3, 2, dtype=torch.long)
    labels[0, 0] = 1
    sure = torch.nn.functional.one_hot(labels, 3).permute(0, 4, 1, 2, 3) * 60.0
    # Label 2 is nowhere and nowhere predicted: its Dice counts as 1, not as 0.
    assert float(dice_ce_loss(sure, labels)) == pytest.approx(0, abs=1e-5)


def test_deep_supervision_weighs_by_halves() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (1, 8, 8, 4), generator=generator)
    fine = torch.randn(1, 2, 8, 8, 4, generator=generator)
    coarse = torch.randn(1, 2, 4, 4, 4, generator=generator)
    total = deep_supervision_loss([fine, coarse], labels)
    expected = (2 * dice_ce_loss(fine, labels) + dice_ce_loss(coarse, labels[:, ::2, ::2])) / 3
    torch.testing.assert_close(total, expected)
