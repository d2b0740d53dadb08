"""The command ``medseg``: its commands, its log, and the one place where errors become exit codes.

Exit codes: 0 done; 1 a fault of medseg; 2 nothing could start; 3 finished, but some cases
failed; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import atexit
import gc
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from medseg.cli.cache import cache_app
from medseg.cli.check import check_command
from medseg.cli.contours import contours_command
from medseg.cli.convert import convert_command
from medseg.cli.doctor import doctor_command
from medseg.cli.evaluate import evaluate_command
from medseg.cli.export import export_command
from medseg.cli.import_nnunet import import_nnunet_command
from medseg.cli.info import info_command
from medseg.cli.instances import instances_command
from medseg.cli.make_set import make_set_command
from medseg.cli.measure import measure_command
from medseg.cli.mesh import mesh_command
from medseg.cli.plan import plan_command
from medseg.cli.postprocess import postprocess_command
from medseg.cli.predict import predict_command
from medseg.cli.preview import preview_command
from medseg.cli.qc import qc_command
from medseg.cli.train import train_command
from medseg.core.errors import Interrupted, MedsegError

DONE, OUR_FAULT, COULD_NOT_START, SOME_FAILED, STOPPED = 0, 1, 2, 3, 130
# New objects after which Python looks for cycles among them; its own 700 are reached at every
# turn while torch is loaded.
_OBJECTS_AT_ONCE = 10_000

_ABOUT = """Train organ segmenters, segment scans with them, measure how good they are.

For research use only, not for diagnosis or treatment.

Exit codes: 0 done, 1 a fault of medseg, 2 nothing could start,
3 finished but some cases failed, 130 stopped by Ctrl-C.

Example: medseg train sample_data/abdomen --out runs/abdomen --budget 10min
"""

app = typer.Typer(
    name="medseg", help=_ABOUT, no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
app.command("train")(train_command)
app.command("plan")(plan_command)
app.command("predict")(predict_command)
app.command("evaluate")(evaluate_command)
app.command("postprocess")(postprocess_command)
app.command("check")(check_command)
app.command("convert")(convert_command)
app.command("import-nnunet")(import_nnunet_command)
app.command("make-set")(make_set_command)
app.command("qc")(qc_command)
app.command("measure")(measure_command)
app.command("instances")(instances_command)
app.command("preview")(preview_command)
app.command("contours")(contours_command)
app.command("mesh")(mesh_command)
app.command("export")(export_command)
app.command("info")(info_command)
app.command("doctor")(doctor_command)

app.add_typer(cache_app, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        from medseg import __version__

        typer.echo(f"medseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Tell more on stderr.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback when medseg itself fails.")
    ] = False,
) -> None:
    _start_log(verbose=verbose or debug)


def _start_log(*, verbose: bool) -> None:
    """Send the log of medseg to stderr. Only a program does this; the library never does."""
    from rich.logging import RichHandler

    from medseg.cli.progress import stderr_console

    handler = RichHandler(
        console=stderr_console(), show_path=False, show_level=verbose, log_time_format="[%X]"
    )
    log = logging.getLogger("medseg")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Warnings of other packages speak to developers; they stay in the log for --verbose.
    logging.captureWarnings(True)
    warnings_log = logging.getLogger("py.warnings")
    warnings_log.handlers = [handler if verbose else logging.NullHandler()]
    warnings_log.propagate = False


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; errors are one line on stderr."""
    debug = "--debug" in arguments
    try:
        app(args=list(arguments), prog_name="medseg")
    except SystemExit as end:
        # Typer ends every command so, and has told wrong options itself.
        return end.code if isinstance(end.code, int) else DONE
    except (Interrupted, KeyboardInterrupt) as error:
        _tell(str(error) or "stopped by the user")
        return STOPPED
    except MedsegError as error:
        _trace(debug)
        _tell(f"error: {error}")
        return COULD_NOT_START
    except Exception as error:  # noqa: BLE001 - the last stop: no traceback for the user
        _trace(debug)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        cure = "" if debug else ", run `medseg --debug ...` for the traceback"
        _tell(f"error: {text} (this is a fault of medseg{cure})")
        return OUR_FAULT
    return DONE


def main() -> None:
    """Entry of the command ``medseg``."""
    gc.set_threshold(_OBJECTS_AT_ONCE, *gc.get_threshold()[1:])
    # What is there at the end goes with the process: looking through it for cycles takes longer
    # than many a command.
    atexit.register(gc.freeze)
    sys.exit(run(sys.argv[1:]))


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()
