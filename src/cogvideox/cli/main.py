"""The `cogvideox` command: its sub-commands, and the one place where errors become exit codes.

0 done; 1 a fault of the program; 2 a request that cannot be carried out; 3 numbers that blew up; 130 stopped.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
import warnings
from types import FrameType
from typing import Annotated, TextIO

import typer

import cogvideox
from cogvideox.cli import (
    bench,
    calibrate,
    convert,
    data,
    decode,
    doctor,
    evaluate,
    generate,
    info,
    models,
    train,
)
from cogvideox.cli.voice import Voice
from cogvideox.core.errors import InputError, NonFiniteError, Note, PeerError
from cogvideox.core.heap import one_heap

STOPPED = 130

app = typer.Typer(name="cogvideox", add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def cogvideox_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Make videos from text, images and videos; train, convert and inspect the models that do."""
    if version:
        typer.echo(cogvideox.__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (
    generate.generate,
    decode.decode,
    info.info,
    models.models,
    doctor.doctor,
    convert.convert,
    calibrate.calibrate,
    bench.bench,
):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")


def main() -> None:
    """Entry point: runs the command and exits with its status."""
    one_heap()
    voice = Voice(sys.stderr)
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = _note
    try:
        voice = Voice.find()
        status = app(prog_name="cogvideox", standalone_mode=False) or 0
    except (InputError, NonFiniteError, PeerError) as error:
        status = voice.fail(str(error), error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        status = STOPPED
    except BrokenPipeError:
        status = 1
    except OSError as error:  # a full disk, a drive that went away
        status = voice.fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except Exception as error:
        # Errors of usage carry their message this way in every release of typer; others are faults of the
        # program.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            if voice.store is None:
                raise
            voice.say(traceback.format_exc())
            status = 1
        elif type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            status = 0
        else:
            status = voice.fail(format_message(), 2)
    if status == STOPPED:  # some releases of typer return this instead of letting Ctrl-C through
        voice.fail("stopped; nothing unfinished is left behind", STOPPED)
    if status == 0:
        voice.leave()
    sys.exit(status if isinstance(status, int) else 0)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Lets `finally` blocks clean up when the process is asked to end."""
    sys.exit(128 + number)


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings are for the user, in one line; those of libraries stay as they are."""
    text = warnings.formatwarning(message, category, filename, lineno, line)
    if issubclass(category, Note):
        text = f"note  {' '.join(str(message).split())}\n"
    with contextlib.suppress(OSError):  # nobody listens
        (file or sys.stderr).write(text)
