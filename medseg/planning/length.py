"""What depends on how long a run is: averaging and weight decay."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from medseg.core.plan import Plan, edited

# The averaged weights are about those of the last thirtieth of a run.
_AVERAGED_PART = 30
# Learning rate x weight decay x steps. What a kernel learned first has so faded at the end, in
# a short run as in a long one (the time scale of X. Wang and L. Aitchison, "How to set AdamW's
# weight decay as you scale model and dataset size", 2024, arXiv:2405.13698). Of 0.2 to 1.4 it
# was the best on hippocampus, also where the same 40 cases were seen 70 times.
_FADED = 0.7
_LEAST_DECAY, _MOST_DECAY = 3e-5, 0.5


def fitted_to_length(plan: Plan, steps: int, *, changes: Collection[str]) -> Plan:
    """The plan with what follows from the number of steps.

    Args:
        plan: With network and optimiser.
        steps: That it will be trained for.
        changes: Dotted keys that were asked for; they stay as they are.
    """
    training, steps = plan.training, max(steps, 1)
    average = float(np.clip(1 - _AVERAGED_PART / steps, 0.9, 0.999))
    fitted: dict[str, object] = {"training.ema_decay": round(average, 4)}
    if training.optimiser == "muon":
        decay = float(np.clip(_FADED / (training.learning_rate * steps), _LEAST_DECAY, _MOST_DECAY))
        fitted["training.weight_decay"] = float(f"{decay:.2g}")
    fitted = {key: value for key, value in fitted.items() if key not in changes}
    made = edited(plan, fitted) if fitted else plan
    if "training.weight_decay" not in fitted:
        return made
    why = f"what {steps} steps need for the first of them to fade"
    return made.model_copy(update={"reasons": {**made.reasons, "weight_decay": why}})
