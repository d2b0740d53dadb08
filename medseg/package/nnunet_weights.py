"""Parameters of nnU-Net's networks under the names that ours have."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from medseg.core.errors import PackageError
from medseg.core.plan import NetworkPlan

# Every layer is listed twice there, and the decoder lists the encoder once more.
_REPEATED = re.compile(r"(^decoder\.encoder\.|\.all_modules\.)")
_LEAF = r"\.(weight|bias)"
_LAYER = r"\.(conv|norm)\.(weight|bias)"
_BLOCK = r"encoder\.stages\.(\d+)\.blocks\.(\d+)"
_DECODER = (
    (rf"decoder\.transpconvs\.(\d+){_LEAF}", r"up.\1.\2"),
    (rf"decoder\.stages\.(\d+)\.convs\.(\d+){_LAYER}", r"merge.\1.\2.\3.\4"),
    (rf"decoder\.seg_layers\.(\d+){_LEAF}", r"heads.\1.\2"),
)
_ENCODERS = {
    "unet": ((rf"encoder\.stages\.(\d+)\.0\.convs\.(\d+){_LAYER}", r"down.\1.\2.\3.\4"),),
    "residual_unet": (
        (rf"encoder\.stem\.convs\.0{_LAYER}", r"down.0.0.\1.\2"),
        (rf"{_BLOCK}\.conv1{_LAYER}", r"down.\1.\2.first.\3.\4"),
        (rf"{_BLOCK}\.conv2{_LAYER}", r"down.\1.\2.second.\3.\4"),
        (rf"{_BLOCK}\.skip\.\d+{_LAYER}", r"down.\1.\2.shortcut.\3.\4"),
    ),
}


def renamed(weights: Mapping[str, Tensor], plan: NetworkPlan, *, source: str) -> dict[str, Tensor]:
    """Give foreign parameters our names; what is listed twice and heads we lack are dropped.

    Args:
        weights: By foreign name.
        plan: The network that they are for, ``unet`` or ``residual_unet``.
        source: What to call the file in a message.

    Raises:
        PackageError: A parameter has a name that no rule knows.
    """
    rules = [(re.compile(old), new) for old, new in (*_ENCODERS[plan.name], *_DECODER)]
    levels = len(plan.features) - 1
    done: dict[str, Tensor] = {}
    for name, value in weights.items():
        if _REPEATED.search(name):
            continue
        ours = next((rule.sub(new, name) for rule, new in rules if rule.fullmatch(name)), None)
        if ours is None:
            raise PackageError(
                source,
                expected="parameters of a plain or residual-encoder U-Net",
                got=f"'{name}'",
                cure="Its network is not one that medseg knows.",
            )
        if ours.startswith("heads.") and not _has_head(int(ours.split(".")[1]), levels):
            continue
        ours = ours.replace("shortcut.conv.", "shortcut.projection.")
        ours = ours.replace(".conv.", ".convolution.")
        done[_past_stem(ours) if plan.name == "residual_unet" else ours] = value
    return done


def _has_head(place: int, levels: int) -> bool:
    # The coarsest decoder stage has none, unless it is the only one.
    return place > 0 or levels == 1


def _past_stem(name: str) -> str:
    """In the finest stage the stem stands before the blocks, which move up by one."""
    found = re.match(r"down\.0\.(\d+)\.(first|second|shortcut)\.", name)
    if not found:
        return name
    return f"down.0.{int(found.group(1)) + 1}.{name[found.start(2) :]}"
