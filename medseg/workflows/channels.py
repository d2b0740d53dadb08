"""Which channels a scan must have for a model."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.core.errors import InputError
from medseg.core.plan import Plan


def check_channels(given: Sequence[str], plan: Plan, *, what: str) -> None:
    """Check that a scan has the plan's channels.

    A model that was trained with ``channel_dropout`` has learned to do without some of them.

    Args:
        given: Names of the channels that there are images of.
        plan: Of the model.
        what: What to call the scan in messages.

    Raises:
        InputError: A channel is strange to the plan, or one is missing that must be there.
    """
    names = [channel.name for channel in plan.channels]
    strange = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    spared = plan.training.channel_dropout > 0 and len(missing) < len(names)
    if strange or (missing and not spared):
        one = "Give one scan for each channel name"
        raise InputError(
            what,
            expected=", ".join(names),
            got=", ".join(given) or "none",
            cure=f"{one}; only a model trained with channel_dropout can do without one."
            if missing and not strange
            else f"{one}.",
        )
