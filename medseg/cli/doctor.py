"""``medseg doctor``"""

from __future__ import annotations

import json

import typer

from medseg.cli.options import AsJson


def doctor_command(
    as_json: AsJson = False,
) -> None:
    """Say what is installed, which devices there are, what is missing and how to get it.

    Example: medseg doctor
    """
    from medseg.cli.info import fact_lines
    from medseg.workflows.doctor import doctor

    facts = doctor()
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join(fact_lines(facts)))
    if any(package["needed"] for package in facts["missing"].values()):
        raise typer.Exit(2)
