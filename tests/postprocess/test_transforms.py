"""The MONAI transform against SciPy, in MONAI's own Compose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy import ndimage

from medseg.core.errors import InputError, LabelError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.postprocess import transforms
from medseg.postprocess.chain import apply_chain, parse_steps
from medseg.postprocess.transforms import KeepLargestRegiond, Postprocessd
from tests.phantoms import oblique_affine


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(5)
    mask = (rng.integers(1, 4, shape) * (rng.random(shape) < 0.35)).astype(np.int32)
    # One region of each label is the largest for sure.
    mask[:4, :3], mask[6:9, 4:8], mask[10:, 2:5] = 1, 2, 3
    return mask


@pytest.mark.parametrize("shape", [(13, 9, 6), (13, 9)])
def test_in_compose_equals_scipy(shape: tuple[int, ...]) -> None:
    mask = _mask(shape)
    expected = mask.copy()
    for value in (1, 3):
        regions, _ = ndimage.label(mask == value, np.ones((3,) * len(shape)))
        largest = np.argmax(np.bincount(regions[regions > 0]))
        expected[(regions > 0) & (regions != largest)] = 0
    cleaned = Compose([KeepLargestRegiond("pred", [1, 3])])({"pred": torch.from_numpy(mask[None])})
    np.testing.assert_array_equal(cleaned["pred"].numpy()[0], expected)
    assert not np.array_equal(mask, expected)


def test_type_and_metadata_stay() -> None:
    mask = _mask((13, 9, 6))[None]
    expected = KeepLargestRegiond(["m"], [1, 2, 3])({"m": mask})["m"]
    assert isinstance(expected, np.ndarray)
    affine = torch.from_numpy(oblique_affine())
    item = MetaTensor(torch.from_numpy(mask).to(torch.float32), affine=affine)
    cleaned = KeepLargestRegiond(["m"], [1, 2, 3])({"m": item})["m"]
    assert isinstance(cleaned, MetaTensor)
    assert cleaned.dtype == torch.float32
    assert torch.equal(cleaned.affine, affine)
    np.testing.assert_array_equal(cleaned.numpy(), expected)


def test_missing_key_and_bad_shape() -> None:
    data = {"m": np.zeros((1, 3, 3, 3), dtype=np.uint8)}
    with pytest.raises(KeyError):
        KeepLargestRegiond(["other"], [1])(data)
    assert KeepLargestRegiond(["other"], [1], allow_missing_keys=True)(data).keys() == data.keys()
    with pytest.raises(InputError, match=r"\(1, I, J, K\)"):
        KeepLargestRegiond(["m"], [1])({"m": np.zeros((2, 3, 3, 3), dtype=np.uint8)})


LABELS = LabelSet.from_names({1: "liver", 2: "spleen", 3: "tumour"})
ONE_STEP = [
    ("KeepLargestRegiond", {"count": 2}, "largest:{}=2"),
    ("RemoveSmallRegionsd", {"volume_mm3": 40.0}, "min-volume:{}=40mm3"),
    ("KeepNearestRegiond", {"point_mm": (-20.0, 20.0, 50.0)}, "nearest:{}=-20,20,50"),
    ("KeepInsided", {"other": 2}, "inside:{}=spleen"),
    ("FillHolesd", {}, "fill-holes:{}"),
    ("FillSliceHolesd", {}, "fill-holes-slices:{}"),
    ("OpenLabelsd", {"radius_mm": 2.0}, "open:{}=2mm"),
    ("CloseLabelsd", {"radius_mm": 2.0}, "close:{}=2mm"),
    ("SmoothLabelsd", {"radius_mm": 1.2}, "smooth:{}=1.2mm"),
    ("MajorityLabelsd", {"radius_mm": 2.0}, "majority:{}=2mm"),
]


@pytest.mark.parametrize(("name", "facts", "text"), ONE_STEP)
def test_each_step_is_that_of_the_chain(name: str, facts: dict[str, object], text: str) -> None:
    mask = _mask((13, 9, 6))
    mask[1, 1, 2] = 0
    affine = oblique_affine()
    steps = parse_steps("; ".join(text.format(label) for label in ("liver", "tumour")), LABELS)
    expected = apply_chain(mask, steps, LABELS, geometry=Geometry(mask.shape, affine))
    assert not np.array_equal(expected, mask)
    image = MetaTensor(torch.from_numpy(mask[None]), affine=torch.from_numpy(affine))
    step = getattr(transforms, name)("m", [1, 3], **facts)
    np.testing.assert_array_equal(Compose([step])({"m": image})["m"].numpy()[0], expected)
    plain = getattr(transforms, name)("m", [1, 3], affine_ras=affine, **facts)
    np.testing.assert_array_equal(plain({"m": mask[None]})["m"][0], expected)
    whole = Postprocessd("m", steps, labels=LABELS)
    np.testing.assert_array_equal(whole({"m": image})["m"].numpy()[0], expected)


def test_a_typed_chain() -> None:
    mask, text = _mask((13, 9, 6)), "largest:{0}; min-volume:*=5mm3; fill-holes:{0}"
    steps = parse_steps(text.format("liver"), LABELS)
    grid = Geometry(mask.shape, np.eye(4))
    expected = apply_chain(mask, steps, LABELS, geometry=grid)
    for step in (
        Postprocessd("m", text.format("liver"), labels=LABELS),
        Postprocessd("m", text.format("1")),
    ):
        np.testing.assert_array_equal(step({"m": mask[None]})["m"][0], expected)
    empty = np.zeros_like(mask)[None]
    assert not Postprocessd("m", text.format("1"))({"m": empty})["m"].any()


def test_wrong_steps_are_told_at_once() -> None:
    with pytest.raises(SettingsError, match="shrink"):
        Postprocessd("m", "shrink:1")
    with pytest.raises(LabelError, match="lung"):
        Postprocessd("m", "largest:lung", labels=LABELS)
    with pytest.raises(SettingsError, match="volume_mm3"):
        transforms.RemoveSmallRegionsd("m", [1])
