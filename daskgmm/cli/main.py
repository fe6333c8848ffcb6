"""The command ``daskgmm``: it loads only the one that is asked for."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from textwrap import shorten
from typing import Any, Final, final

import click

from daskgmm.cli.wording import as_options
from daskgmm.errors import DaskGMMError, InterruptedFit
from daskgmm.loaded import is_a


def _fit() -> click.Command:
    from daskgmm.cli.fit import fit

    return fit


def _select() -> click.Command:
    from daskgmm.cli.select import select

    return select


def _predict() -> click.Command:
    from daskgmm.cli.predict import predict

    return predict


def _score() -> click.Command:
    from daskgmm.cli.score import score

    return score


def _sample() -> click.Command:
    from daskgmm.cli.sample import sample

    return sample


def _info() -> click.Command:
    from daskgmm.cli.info import info

    return info


def _plot() -> click.Command:
    from daskgmm.cli.plot import plot

    return plot


def _warmup() -> click.Command:
    from daskgmm.cli.warmup import warmup

    return warmup


def _demo() -> click.Command:
    from daskgmm.cli.demo import demo

    return demo


COMMANDS: Final[dict[str, tuple[Callable[[], click.Command], str]]] = {
    "fit": (_fit, "Fit a mixture to the rows in STORE, and save it as MODEL."),
    "select": (
        _select,
        "Choose among mixtures of the rows in STORE, and save the best as MODEL.",
    ),
    "predict": (
        _predict,
        "Label the rows in STORE by MODEL, and write the labels to OUT.",
    ),
    "score": (
        _score,
        "Print how well MODEL describes the rows in STORE, from one pass over them.",
    ),
    "sample": (
        _sample,
        "Draw rows from MODEL, in random order, and write them to OUT.",
    ),
    "info": (_info, "Describe a model, data, or an output: whether it is complete."),
    "plot": (
        _plot,
        "Draw MODEL, over some rows of STORE if it is given, and write PICTURE.",
    ),
    "warmup": (
        _warmup,
        "Compile the kernel, and keep it for all processes that follow.",
    ),
    "demo": (_demo, "Fit data in less memory than they take, and show what was found."),
}
"""What loads a command, and what it says of itself: to ask it would take seconds."""


@final
class _Commands(click.Group):
    """Loads commands when they are asked for, and says what went wrong.

    Errors that a user can do something about become one line and status 1.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        return COMMANDS[cmd_name][0]() if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; what is none may have been mistyped."""
        near = get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, says) for name, (_, says) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        # It logs each try with a traceback; what comes of them is told in the end.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        try:
            with _terminable(), warnings.catch_warnings():
                warnings.showwarning = _warn  # type: ignore[assignment]
                # Where the model has none: --columns picks them in its order.
                warnings.filterwarnings("ignore", "X has feature names, but")
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            said = _what_was_kept(error, ctx.invoked_subcommand)
            raise _Interrupted(said, _was_terminated(error)) from None
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads on
        except MemoryError as error:
            raise _in_one_line(
                error,
                "Out of memory: give each process more with --memory-limit, start "
                "fewer, or store smaller chunks.",
            ) from error
        except DaskGMMError as error:
            raise _in_one_line(error, str(error)) from error
        except (ValueError, OSError, ImportError) as error:
            # Libraries may list all places where they looked for another one.
            said = shorten(str(error), _MOST_SAID, placeholder=" …")
            raise _in_one_line(error, said) from error
        except Exception as error:
            if isinstance(error, _OF_CLICK) or _TRACEBACK in os.environ:
                raise
            if not is_a(error, "distributed", "KilledWorker"):
                raise _in_one_line(
                    error,
                    f"{type(error).__name__}: {error}. Nobody foresaw this error. With "
                    f"{_TRACEBACK}=1 in the environment, it is shown where it arose.",
                ) from error
            raise _in_one_line(
                error,
                "A worker process died again and again, most likely for want of "
                "memory: give it more with --memory-limit, or store smaller chunks.",
            ) from error


_MOST_SAID: Final = 1_000
"""Characters of another library's error."""
_OF_CLICK: Final = (click.ClickException, click.Abort, click.exceptions.Exit)
_TRACEBACK: Final = "DASKGMM_TRACEBACK"


@final
class _Terminated(KeyboardInterrupt):
    """A system, such as a queue's, ends the command."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Have that end a command as Ctrl-C does: in a line, and its workers with it."""

    def end(_number: int, _frame: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # another thread's command has no signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _was_terminated(error: BaseException | None) -> bool:
    """Whether that is what led to an interrupt."""
    while error is not None and not isinstance(error, _Terminated):
        error = error.__cause__ or error.__context__
    return error is not None


@final
class _Interrupted(click.ClickException):
    """A command was interrupted: it ends as the shell expects."""

    def __init__(self, message: str, was_terminated: bool) -> None:
        super().__init__(message)
        self._number = signal.SIGTERM if was_terminated else signal.SIGINT

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 128 + self._number

    def show(self, file: Any = None) -> None:
        """Say so, in one line that is no error."""
        click.echo(f"\n{self.message}", err=True)


_RESUMED: Final = ("predict", "sample")
"""Commands that resume where they stopped."""


def _what_was_kept(error: KeyboardInterrupt, command: str | None) -> str:
    if isinstance(error, InterruptedFit):
        if error.unwritten is not None:
            return f"Interrupted; {error}"
        if error.checkpoint is None:
            return (
                "Interrupted; nothing was kept. With --checkpoint, the same command "
                "resumes where it stopped."
            )
        return f"Interrupted. The same command resumes from {error.checkpoint}."
    if command in _RESUMED:
        return "Interrupted. The same command resumes where this one stopped."
    return f"Interrupted {error}".rstrip() + "."


def _warn(message: Warning | str, *_where: Any) -> None:
    """Show a warning as errors are shown: users do not know this program's lines."""
    click.echo(f"Warning: {as_options(' '.join(str(message).split()))}", err=True)


def _in_one_line(error: Exception, message: str) -> click.ClickException:
    """A message, and what was noted where the error passed by."""
    notes = getattr(error, "__notes__", ())
    said = " ".join(" ".join([message, *notes]).split())
    return click.ClickException(as_options(said))


# Dask calls its commands what they call themselves: `dask gmm`.
@click.group(
    "gmm",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="daskgmm", prog_name="daskgmm")
def main() -> None:
    """Gaussian mixtures for data larger than memory.

    Data are Zarr arrays with one row for each sample, or Parquet files, on a disk or at
    a URL:

    \b
      daskgmm fit rows.zarr model.zarr -k 8
      daskgmm select rows.zarr model.zarr -k 1:10
      daskgmm predict model.zarr rows.zarr labels.zarr
      daskgmm score model.zarr rows.zarr
      daskgmm sample model.zarr drawn.zarr -n 1000000

    They work on a cluster of local processes unless told --scheduler, to join a cluster
    that is running, or --cluster, to start one that a file describes. A command that
    fails ends with status 1 and a line on stderr, one that is mistyped with status 2.
    """  # noqa: D301  \b is a backspace: click leaves the lines that follow alone
