"""Write the table of docs/networks.md: ``python scripts/network_table.py``.

Each network is sized as the planner sizes it on a GPU (32 channels in the finest stage, one
channel in, two labels) for a patch of 64^3 voxels and one of 256^2 pixels, and counted without
being run.
"""

from __future__ import annotations

from pathlib import Path

from medseg.core.network_options import NETWORK_KINDS
from medseg.core.plan import NetworkPlan
from medseg.networks.cost import network_cost
from medseg.planning.networks import Frame
from medseg.planning.presets import PRESETS, Ground, fit

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SIZES = {3: (64, 64, 64), 2: (256, 256, 1)}
WIDTH, WIDEST = 32, 320
# Presets of one network that differ in patch and batch alone.
_TOLD_BY = {"residual_unet_m": "residual_unet_m, _l, _xl"}
_NOT_TOLD = ("residual_unet_l", "residual_unet_xl")


def plan_of(name: str, dims: int) -> NetworkPlan:
    """The network for the patch of the table."""
    patch = SIZES[dims]
    ground = Ground(patch, (1.0, 1.0, 1.0), patch[0] * patch[1] * patch[2], cases=100)
    found = fit(name, ground, Frame(dims, 1, 3, width=WIDTH, widest=WIDEST))
    assert found.patch == patch, (name, found.patch)
    return found.network


def row(name: str) -> str:
    """One line of the table."""
    kind = NETWORK_KINDS[PRESETS[name].network if name in PRESETS else name]
    cells = []
    for dims in (3, 2):
        plan = plan_of(name, dims)
        cost = network_cost(plan, SIZES[dims])
        divisor = " x ".join(str(side) for side in plan.divisor[:dims])
        if plan.fixed_size is not None:
            divisor += ", one size"
        cells.append((divisor, f"{cost.parameters / 1e6:.1f} M", f"{cost.gflops:.1f}"))
    pairs = [f"{volume}; {picture}" for volume, picture in zip(*cells, strict=True)]
    told = f"`{_TOLD_BY.get(name, name)}`".replace(", ", "`, `")
    return f"| {' | '.join([told, kind.title, *pairs, kind.source])} |"


def table() -> str:
    """All of it, as Markdown."""
    titles = ("Name", "What it is", "Divisor; in 2D", "Parameters; in 2D", "GFLOPs at 64³; at 256²")
    head = f"| {' | '.join((*titles, 'Paper'))} |"
    names = [name for name in (*NETWORK_KINDS, *PRESETS) if name not in _NOT_TOLD]
    return "\n".join([head, "|---|---|---|---|---|---|", *(row(name) for name in names)])


def main() -> None:
    """Put the table between its two marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
