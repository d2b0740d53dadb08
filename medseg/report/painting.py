"""The brushes of :mod:`medseg.report.pictures`: planes, windows, colours, lines, letters."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import LabelSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[float, float, float]

PAPER, INK, DIM = "#101114", "#f2f2f2", "#9aa0a6"
_CT_WINDOW_HU = (-160.0, 240.0)
_DPI = 130
_INWARD_PT = 7.0


@dataclass(frozen=True)
class Plane:
    """One way to cut: the axis cut across, and the letters left, right, above and below."""

    name: str
    normal: int
    letters: tuple[str, str, str, str]

    @property
    def axes(self) -> tuple[int, int]:
        """The RAS axes across and down the picture."""
        across, down = (axis for axis in range(3) if axis != self.normal)
        return across, down

    def cut(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """The slice (..., rows, columns) of an RAS volume (..., I, J, K), right or front left."""
        slab: NDArray[Any] = np.take(volume, index, axis=self.normal - 3)
        return slab[..., ::-1, ::-1].swapaxes(-1, -2)


PLANES = (
    Plane("axial", 2, ("R", "L", "A", "P")),
    Plane("coronal", 1, ("R", "L", "S", "I")),
    Plane("sagittal", 0, ("A", "P", "S", "I")),
)


def windowed(voxels: NDArray[Any], modality: str) -> NDArray[np.uint8]:
    """Voxels (I, J, K) as 0 to 255, or (3, I, J, K) of a colour picture."""
    if voxels.ndim == 4 and voxels.shape[0] == 3 and voxels.dtype == np.uint8:
        return voxels
    volume = voxels[0] if voxels.ndim == 4 else voxels
    return shaded(volume, window_of(volume, modality))


def window_of(volume: NDArray[Any], modality: str) -> tuple[float, float]:
    """What is shown black and what white of a volume (I, J, K), see ``CasePicture.modality``."""
    # Every seventh voxel is enough for a window, and seven divides few row lengths; of large
    # volumes a hundred thousand are.
    stride = max(1, min(7, volume.size // 1000), volume.size // 100_003)
    sample = volume.ravel(order="K")[::stride].astype(np.float32)
    sample = np.nan_to_num(sample, posinf=0.0, neginf=0.0)
    low, high = (float(edge) for edge in np.percentile(sample, [1.0, 99.5]))
    if modality.upper() == "CT" or (not modality and float(sample.min()) < -500):
        low, high = _CT_WINDOW_HU
    return low, high


def shaded(values: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Values of any shape as 0 to 255; what is no number counts as 0."""
    finite = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = window
    scaled: NDArray[np.float32] = np.clip((finite - low) / max(high - low, 1e-6), 0.0, 1.0)
    return (scaled * 255).astype(np.uint8)


def label_colour(value: int, labels: LabelSet) -> Colour:
    """Red, green, blue, 0 to 1; grey for a value without a label."""
    for label in labels.labels:
        if label.value == value:
            red, green, blue = label.colour
            return red / 255, green / 255, blue / 255
    return 0.6, 0.6, 0.6


def coloured(mask: NDArray[Any], labels: LabelSet, *, alpha: float) -> NDArray[np.float64]:
    """(rows, columns, 4) red, green, blue and opacity, 0 to 1."""
    found, inverse = np.unique(mask, return_inverse=True)
    rows = [(*label_colour(int(value), labels), alpha if value else 0.0) for value in found]
    table: NDArray[np.float64] = np.array(rows, dtype=np.float64)
    return table[inverse.reshape(mask.shape)]


def new_figure(width_in: float, height_in: float) -> Figure:
    # Not through pyplot, which keeps every figure in a global list.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def new_panel(figure: Figure, box_in: tuple[float, float, float, float]) -> Axes:
    width_in, height_in = figure.get_size_inches()
    left, bottom, width, height = box_in
    return figure.add_axes(
        (left / width_in, bottom / height_in, width / width_in, height / height_in),
        facecolor="black",
    )


def show(
    axes: Axes,
    image: NDArray[Any],
    spacing_mm: tuple[float, float],
    *,
    interpolation: str = "nearest",
) -> None:
    rows, columns = image.shape[:2]
    extent = (0.0, columns * spacing_mm[0], rows * spacing_mm[1], 0.0)
    axes.imshow(
        image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation=interpolation,
        aspect="equal",
    )  # fmt: skip


def outline(
    axes: Axes,
    region: NDArray[np.bool_],
    spacing_mm: tuple[float, float],
    *,
    color: Any,
    width: float,
) -> None:
    # One more voxel around closes the line where the region touches the edge.
    padded = np.pad(region, 1).astype(np.float32)
    x = (np.arange(padded.shape[1]) - 0.5) * spacing_mm[0]
    y = (np.arange(padded.shape[0]) - 0.5) * spacing_mm[1]
    axes.contour(x, y, padded, levels=[0.5], colors=[color], linewidths=width)


def frame(
    axes: Axes, size_mm: tuple[float, float], *, letters: tuple[str, str, str, str], flat: bool
) -> None:
    from matplotlib.patheffects import withStroke

    # Panels of one column are equally wide, so that a narrow plane stands in the middle.
    width, height = size_mm
    axes.set(ylim=(height, 0.0), xticks=[], yticks=[], aspect="equal", anchor="C")
    axes.set_xlim(0.0, width)
    for side in axes.spines.values():
        side.set_visible(False)
    if flat:
        return
    places = ((0.0, 0.5), (1.0, 0.5), (0.5, 1.0), (0.5, 0.0))
    for letter, (x, y) in zip(letters, places, strict=True):
        axes.annotate(
            letter, (x, y), xycoords="axes fraction", textcoords="offset points",
            xytext=(_INWARD_PT * (1 - 2 * x), _INWARD_PT * (1 - 2 * y)), color=INK, fontsize=8,
            ha="center", va="center", path_effects=[withStroke(linewidth=1.5, foreground="black")],
        )  # fmt: skip


def write(
    figure: Figure, x_in: float, y_in: float, text: str, *, size: float, **style: Any
) -> None:
    width_in, height_in = figure.get_size_inches()
    style = {"color": INK, "va": "center", "ha": "left"} | style
    # A "$" in a case name is no formula.
    figure.text(x_in / width_in, y_in / height_in, text, fontsize=size, parse_math=False, **style)


def draw_legend(figure: Figure, entries: Sequence[tuple[str, Colour]], *, columns: int) -> None:
    from matplotlib.patches import Patch

    if not entries:
        return
    legend = figure.legend(
        handles=[Patch(color=colour) for _, colour in entries],
        labels=[name for name, _ in entries],
        loc="lower center", ncols=min(columns, len(entries)), frameon=False, fontsize=8,
        labelcolor=INK, handlelength=1.0, handleheight=1.0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
