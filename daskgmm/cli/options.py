"""Options that several commands have: where the data are, and where the work is."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, final

import click
from click.shell_completion import CompletionItem

from daskgmm.storage.urls import absolute, check_library

SHAPES: Final = ("full", "tied", "diag", "spherical")
"""Types of covariances, as `daskgmm.mixtures.covariance` has them."""

_OPERATORS: Final = "==, !=, <, <=, >, >=, in and not in"
_SIGNS: Final = re.compile(r"[<>=!&|~]+")
_SIGNS_AT_END: Final = re.compile(r"[<>=!&|~]+$")
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_SEVERAL: Final = re.compile(r"[<>=].*\s(and|or|&+|\|+)\s.*([<>=]|\sin\s)")
_ASSIGNED: Final = re.compile(r"[^<>=!]+=[^<>=!]+")
_FILTER: Final = re.compile(
    r"\s*(.+?)\s*(==|!=|<=|>=|<|>|\s(?:not\s+)?in\s)\s*(.+?)\s*"
)


@final
class _Place(click.ParamType):  # type: ignore[type-arg]  # newer ones are generic
    """A path or a URL, under the name that `absolute` gives it."""

    name = "place"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """The name, or an error of the argument."""
        try:
            place = absolute(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        check_library(place)
        return place

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names of files and folders: the shell knows them."""
        return [CompletionItem(incomplete, type="file")]


PLACE: Final = _Place()


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the work is done, as the options say."""

    scheduler: str | None
    file: Path | None
    tls_ca_file: str | None
    tls_cert: str | None
    tls_key: str | None
    n_workers: int | None
    threads_per_worker: int | None
    memory_limit: str
    dashboard: str | None

    def __post_init__(self) -> None:
        """Refuse options that do not go together."""
        elsewhere = self.scheduler is not None or self.file is not None
        if self.scheduler is not None and self.file is not None:
            raise click.UsageError("Give --scheduler or --cluster, not both.")
        if self.scheduler is None and self.credentials():
            raise click.UsageError(
                "--tls-ca-file, --tls-cert and --tls-key are for --scheduler; with "
                "--cluster, the file says them under security."
            )
        local = (self.n_workers, self.threads_per_worker, self.dashboard)
        if elsewhere and (any(local) or self.memory_limit != "auto"):
            raise click.UsageError(
                "--workers, --threads-per-worker, --memory-limit and --dashboard are "
                "for a local cluster: leave them out with --scheduler and --cluster."
            )

    def credentials(self) -> dict[str, str]:
        """What is given of them."""
        named = {
            "tls_ca_file": self.tls_ca_file,
            "tls_client_cert": self.tls_cert,
            "tls_client_key": self.tls_key,
        }
        return {name: file for name, file in named.items() if file is not None}


def _size(_context: click.Context, _option: click.Parameter, value: str) -> str:
    """Memory of a process as Dask takes it, before that loads; 0 is no limit."""
    if value == "auto":
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise click.BadParameter(
            f"{value!r} is not a size: write 2GB, 500MiB or the like, or auto."
        )
    thousands = " kmgtp".index((found["prefix"] or " ").lower())
    if 0.0 < float(found["number"]) * 1000.0**thousands < _LEAST_LIMIT:
        raise click.BadParameter(
            f"{value!r} is too little for a process, which takes 400 MB before any "
            "data: write 2GB or the like."
        )
    return value


def _address(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> str | None:
    """An address of a kind that Dask knows, and whose port is one; as it is."""
    if value is None:
        return None
    kind, sign, place = value.rpartition("://")
    if kind in ("http", "https"):
        raise click.BadParameter(
            f"{value!r} is where a dashboard is looked at: write the scheduler's own "
            "address, such as tcp://HOST:8786."
        )
    if sign and kind not in ("tcp", "tls"):
        _check_kind(kind)
        return value
    found = _PLACE.fullmatch(place)
    if found is None or not 0 < int(found["port"] or 1) <= _LAST_PORT:
        raise click.BadParameter(
            f"{value!r} is no address: write HOST, HOST:PORT, tcp://HOST:PORT or "
            f"tls://HOST:PORT, with a number from 1 to {_LAST_PORT} for PORT."
        )
    return value


@final
class Finite(click.FloatRange):
    """Numbers of a range, of which NaN and infinity are none."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """As click does, which takes NaN for a number of any range."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def _check_kind(kind: str) -> None:
    """Refuse a kind of address that neither Dask nor any other package brings."""
    others = entry_points(group="distributed.comm.backends").names
    if kind in _KINDS or kind in others:
        return
    near = get_close_matches(kind.lower(), _KINDS, n=1, cutoff=0.5)
    raise click.BadParameter(
        f"Dask knows no addresses that begin with {kind}://"
        + (f": is {near[0]}:// meant?" if near else ".")
    )


def _served(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> str | None:
    """Where a dashboard is served: its port says so, and the interface before it."""
    found = None if value is None else _SERVED.fullmatch(value)
    if value is not None and (found is None or int(found["port"]) > _LAST_PORT):
        raise click.BadParameter(
            f"{value!r} is no address: write :PORT or HOST:PORT, with a number up to "
            f"{_LAST_PORT} for PORT."
        )
    return value


_LEAST_LIMIT: Final = 1e7
"""Bytes that no process can do with."""
_LAST_PORT: Final = 65535
_KINDS: Final = ("tcp", "tls", "ws", "wss", "ucx", "inproc")
"""What addresses of Dask's own kinds begin with."""
_PLACE: Final = re.compile(r"(\[[^\]]+\]|[^:/\s]+)(:(?P<port>\d{1,5}))?/?")
_SERVED: Final = re.compile(r"((\[[^\]]+\]|[^:/\s]+)?:)?(?P<port>\d{1,5})")
_SIZE: Final = re.compile(
    r"(?P<number>\d+(\.\d*)?(e\d+)?)\s*((?P<prefix>[kmgtp])i?)?b?", re.IGNORECASE
)
_existing_file: Final = click.Path(exists=True, dir_okay=False)

_CLUSTER_OPTIONS: Final = (
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        callback=_address,
        help="Work on the Dask cluster of this scheduler, such as tcp://host:8786 or "
        "tls://host:8786, instead of a local one.",
    ),
    click.option(
        "--cluster",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Start the cluster that this file describes, and close it when done.",
    ),
    click.option(
        "--tls-ca-file",
        type=_existing_file,
        metavar="FILE",
        help="Certificate of the authority that signed the scheduler's.  [default: "
        "distributed.comm.tls in Dask's configuration, for all three]",
    ),
    click.option(
        "--tls-cert",
        type=_existing_file,
        metavar="FILE",
        help="Certificate to show to the scheduler.",
    ),
    click.option(
        "--tls-key", type=_existing_file, metavar="FILE", help="Its private key."
    ),
    click.option(
        "--workers",
        "n_workers",
        type=click.IntRange(min=1),
        help="Processes of the local cluster.  [default: by the number of cores]",
    ),
    click.option(
        "--threads-per-worker",
        type=click.IntRange(min=1),
        help="Threads of each process.  [default: by the number of cores]",
    ),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        default="auto",
        show_default=True,
        callback=_size,
        help="Memory of each process of the local cluster, such as 2GB; 'auto' shares "
        "this machine's between them.",
    ),
    click.option(
        "--dashboard",
        metavar="ADDRESS",
        callback=_served,
        help="Serve Dask's dashboard of the local cluster at this address, such as "
        ":8787.  [default: a free port of this machine]",
    ),
)


@final
@dataclass(frozen=True, slots=True)
class Data:
    """What of a store are the rows, as the options say."""

    array: str | None
    columns: tuple[str, ...] | None
    filters: tuple[tuple[str, str, Any], ...]
    storage_options: dict[str, Any]
    decode_cf: bool | None
    version: int | None


def _split(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise click.BadParameter(f"{value!r} has an empty name.")
    return names


def _literal(text: str) -> Any:
    """A number, string, list, … as Python writes it; anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _filters(
    _context: click.Context, _parameter: click.Parameter, values: Sequence[str]
) -> tuple[tuple[str, str, Any], ...]:
    return tuple(map(_filter, values))


def _filter(text: str) -> tuple[str, str, Any]:
    if _SEVERAL.search(_QUOTED.sub("", text)):
        raise click.BadParameter(
            f"{text!r} is of several conditions: give --filter for each, and all must "
            "hold."
        )
    found = _FILTER.fullmatch(text)
    if found is None and _ASSIGNED.fullmatch(text):
        raise click.BadParameter(
            f"{text!r} has the operator '=', which there is not: is '==' meant?"
        )
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not of the form 'COLUMN OP VALUE', with OP one of "
            f"{_OPERATORS}."
        )
    if _QUOTED.sub("", found[3])[:1] in ("'", '"') and found[3]:
        raise click.BadParameter(f"{text!r} begins a quote that does not end.")
    column, operator, value = found[1], " ".join(found[2].split()), _literal(found[3])
    # What is no operator splits into one that is, and signs on either side.
    before, after = _SIGNS_AT_END.search(column), _SIGNS.match(found[3])
    if before or after:
        signs = (before or ("",))[0] + operator + (after or ("",))[0]
        raise click.BadParameter(
            f"{text!r} has the operator {signs!r}, which there is not: use one of "
            f"{_OPERATORS}."
        )
    if operator.endswith("in"):
        value = value.split(",") if isinstance(value, str) else value
        several = isinstance(value, list | tuple | set)
        if several and not all(str(v).strip() for v in value):
            raise click.BadParameter(f"{text!r} has an empty value.")
        value = [
            _literal(v.strip()) if isinstance(v, str) else v
            for v in (value if several else [value])
        ]
        if len({isinstance(v, str) for v in value}) > 1:
            raise click.BadParameter(f"{text!r} has numbers and texts.")
    return column, operator, value


def _storage_options(
    _context: click.Context, _parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Any]:
    options = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


_DATA_OPTIONS: Final = (
    click.option(
        "--array",
        metavar="PATH",
        help="Path of the array of rows inside STORE, if that is a Zarr group.",
    ),
    click.option(
        "--columns",
        metavar="A,B,...",
        callback=_split,
        help="Columns that are the features, if STORE is Parquet: of numbers, or of "
        "lists of one length, of which each element is a feature; a field of a struct "
        "is STRUCT.FIELD.  [default: those that the model was fitted to, or all that "
        "are no index]",
    ),
    click.option(
        "--filter",
        "filters",
        metavar="'COLUMN OP VALUE'",
        multiple=True,
        callback=_filters,
        help="Use only rows for which this holds, if STORE is Parquet: 'x > 3', "
        f"'day == \"mon\"', 'site in 1,4'. OP is one of {_OPERATORS}. Give it "
        "several times, and all must hold.",
    ),
    click.option(
        "--storage-option",
        "storage_options",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_storage_options,
        help="What fsspec needs to open STORE at a URL, such as anon=true; may be "
        "given several times. A VALUE that is JSON is taken as JSON.",
    ),
    click.option(
        "--decode-cf/--no-decode-cf",
        default=None,
        help="What numbers mean in Zarr whose attributes scale_factor, add_offset, "
        "_FillValue or missing_value say that they stand for others: those others, "
        "with NaN for nothing, or the numbers themselves.  [default: refuse them]",
    ),
    click.option(
        "--table-version",
        "version",
        type=click.IntRange(min=0),
        help="Version of STORE, if it is a table of Delta Lake.  [default: the newest]",
    ),
)


def is_given(name: str) -> bool:
    """Whether the running command was given an option, be it its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def gathered(
    kind: type, name: str, options: Sequence[Callable[..., Any]]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options, which reach the command as one object of a dataclass."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_object(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field in fields(kind)}
            command(**{name: kind(**values)}, **given)

        decorated: Callable[..., None] = with_object
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


cluster_options: Final = gathered(Cluster, "cluster", _CLUSTER_OPTIONS)
data_options: Final = gathered(Data, "data", _DATA_OPTIONS)

missing_option: Final = click.option(
    "--missing-chunks",
    type=click.Choice(["error", "fill"]),
    default="error",
    show_default=True,
    help="What a Zarr chunk that is not in its store is: an error, or the fill value.",
)
nan_option: Final = click.option(
    "--nan",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What is done about rows with NaN or null: an error, or they are left out, "
    "and predicted as -1 or NaN.",
)
json_option: Final = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object to stdout at the end, and all else to stderr.",
)
dry_run_option: Final = click.option(
    "--dry-run",
    is_flag=True,
    help="Say how many rows, blocks and bytes there are, and estimate memory and time "
    "from one block that is read and computed here; start and write nothing.",
)
