"""Checkpoints: the state of all runs of a fit, from which the same fit goes on.

There are two slots, each a group as `models` writes it, with a digest of all that is in
it. A state goes into the slot of the older one; so whatever breaks off, at any byte,
the younger one stays, and of two slots the valid one with more passes counts. No store
need be able to rename.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from importlib.metadata import version
from time import monotonic
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.em.acceleration import Sampling
from daskgmm.em.interval import Interval
from daskgmm.em.scan import Survey, digest_of
from daskgmm.em.state import Run, State, Status
from daskgmm.errors import CheckpointError, ModelFileError, NewerFormatError
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.criteria import Fit
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.storage import models
from daskgmm.storage.retry import check_free
from daskgmm.storage.urls import absolute, check_writable

_KIND: Final = "checkpoint"
FORMAT: Final = 6
"""Version of what is written; a fit goes on from no other one."""
_MEMORY: Final = "memory"
_NO_FIT: Final = (np.nan,) * 4
_ARRAYS: Final = ("weights", "means", "covariances", "factors")


def describe(value: Any) -> Any:
    """A parameter in a form that can be written and compared."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.random.RandomState):
        algorithm, keys, *rest = models.state_of(value)
        return f"{algorithm} {digest_of(np.asarray(keys)).hex()} {rest}"
    array = np.asarray(value)
    return f"array of {array.dtype} {array.shape} {digest_of(array).hex()}"


@final
@dataclass
class Checkpoint:
    """Writes the states of one fit to one place, and finds them again.

    Attributes
    ----------
    url : str or path
        Any URL that Zarr can write to.
    interval : Interval
    parameters : mapping
        What makes the fit this one and no other, by the names that the user knows.
    has_state : bool
        Whether a state of the fit was found, or written.
    """

    url: str | os.PathLike[str]
    interval: Interval
    parameters: Mapping[str, Any]
    has_state: bool = False
    _identity: dict[str, Any] = field(default_factory=dict)
    _slot: int = 0
    _passes: int = 0
    _written: float = field(default_factory=monotonic)

    def __post_init__(self) -> None:
        """Know the place by a name that holds in any folder."""
        place = absolute(self.url)
        check_writable(place)
        self.url = place.rstrip("/")

    def recall(self, found: Survey, sampled: Sampling) -> State | None:
        """The state to go on from, if there is one.

        It may be of a fit with a lower `max_iter`, a higher `tol`, fewer restarts or no
        acceleration: of this one, then, it is a part.

        Raises
        ------
        CheckpointError
            If what is there belongs to another fit; the message says what differs. Or
            if it has another format.
        """
        self._identity = {
            "version of daskgmm": version("daskgmm"),
            **{name: describe(value) for name, value in self.parameters.items()},
            "accelerate": sampled.accelerated,
            "init_size": sampled.size,
            "rows that starts are found from": sampled.start_size,
            **_identity_of(found),
        }
        check_free(self._place(0))
        for slot in (0, 1):
            models.check_ours(self._place(slot))
        states = {slot: self._read(slot) for slot in (0, 1)}
        whole = {slot: model for slot, model in states.items() if model is not None}
        if not whole:
            return None
        newest = max(whole, key=lambda slot: whole[slot].fitted["n_passes"])
        self._check(whole[newest].parameters)
        state = _decode(whole[newest].fitted)
        self._slot, self._passes = 1 - newest, state.n_passes
        self.has_state = True
        return state

    def keep(self, state: State, *, at_once: bool) -> None:
        """Write a state if it is time to, or in any case."""
        passes, seconds = self.interval.passes, self.interval.seconds
        due = at_once or (
            passes is not None and state.n_passes - self._passes >= passes
        )
        due |= seconds is not None and monotonic() - self._written >= seconds
        if not due:
            return
        model = models.Model(_KIND, self._identity, _encode(state))
        models.write(self._place(self._slot), model)
        self.has_state = True
        self._slot, self._passes = 1 - self._slot, state.n_passes
        self._written = monotonic()

    def _place(self, slot: int) -> str:
        return f"{self.url}/slot-{slot}"

    def _read(self, slot: int) -> models.Model | None:
        try:
            model = models.load(self._place(slot))
        except NewerFormatError:
            raise  # it is whole, and must not be written over
        except ModelFileError:
            # Nothing is there, or a write broke off: the other slot is whole then.
            return None
        # The first format did not say which it is.
        its_format = model.fitted.get("format", 1)
        if its_format != FORMAT:
            raise CheckpointError(
                f"The checkpoint at {self.url} has format {its_format}, and this "
                f"version of daskgmm resumes from format {FORMAT} only: fit with the "
                "version that wrote it, or choose another place, or delete it."
            )
        return model

    def _check(self, theirs: Mapping[str, Any]) -> None:
        ours = self._identity
        differing = [
            f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
            for name in {**ours, **theirs}
            if theirs.get(name) != ours.get(name) and not _is_part(name, theirs, ours)
        ]
        if differing:
            raise CheckpointError(
                f"The checkpoint at {self.url} is of another fit: "
                f"{'; '.join(differing)}. Fit with what it was made with, or choose "
                "another place, or delete it."
            )


def _is_part(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a fit with their value has done a part of what one with ours has to."""
    if name not in theirs or name not in ours:
        return False
    was, now = theirs[name], ours[name]
    if name in ("max_iter", "n_init"):
        return bool(was < now)
    if name == "tol":
        return bool(now < was)
    # Plain EM may go on accelerated. What was drawn has had its use then.
    drawn = ("accelerate", "init_size", "rows that starts are found from")
    return name in drawn and not theirs["accelerate"] and bool(ours["accelerate"])


def _identity_of(found: Survey) -> dict[str, Any]:
    """The data, as far as the fitted bits depend on them."""
    rows, weights = hashlib.sha256(), hashlib.sha256()
    lengths = np.array([block.n_rows for block in found.blocks])
    for block in found.blocks:
        rows.update(block.digest)
        weights.update(block.weights_digest)
    return {
        "number of X's rows": found.n_rows,
        "rows of X's blocks": digest_of(lengths).hex(),
        "contents of X": rows.hexdigest()[:32],
        "contents of sample_weight": weights.hexdigest()[:32],
    }


def _encode(state: State) -> dict[str, Any]:
    """Runs as a few arrays, laid end to end, so that few objects are written."""
    runs = state.runs
    mixtures = [run.parameters for run in runs]
    there = [mixture for mixture in mixtures if mixture is not None]

    def joined(name: str) -> NDArray[np.float64]:
        numbers = [np.ravel(getattr(mixture, name)) for mixture in there]
        return np.concatenate([np.empty(0), *numbers])

    return {
        "format": FORMAT,
        **{name: joined(name) for name in _ARRAYS},
        "shapes": np.array(
            ["" if m is None else m.shape.name for m in mixtures], dtype=object
        ),
        "n_components": np.array(
            [0 if m is None else m.n_components for m in mixtures], dtype=np.int64
        ),
        "n_features": there[0].n_features if there else 0,
        "statuses": np.array([run.status.value for run in runs], dtype=object),
        "errors": np.array([run.error for run in runs], dtype=object),
        "previous": np.array([run.previous for run in runs]),
        "fits": np.array(
            [_NO_FIT if run.fit is None else astuple(run.fit) for run in runs]
        ),
        "n_bounds": np.array([len(run.bounds) for run in runs], dtype=np.int64),
        "bounds": np.array([b for run in runs for b in run.bounds], dtype=float),
        **_encode_memories(runs),
        "n_passes": state.n_passes,
        "seed": state.seed,
        "prior_mean": None if state.of_priors is None else state.of_priors[0],
        "prior_covariance": None if state.of_priors is None else state.of_priors[1],
        "history": state.history,
        "random_state": state.random_state,
        "before_draw": state.before_draw,
    }


def _decode(fitted: Mapping[str, Any]) -> State:
    mixtures = _mixtures(fitted)
    bounds = np.split(fitted["bounds"], np.cumsum(fitted["n_bounds"])[:-1])
    fits = fitted["fits"]
    memories = _decode_memories(fitted, len(mixtures))
    runs = [
        Run(
            mixture,
            Status(fitted["statuses"][run]),
            tuple(float(bound) for bound in bounds[run]),
            float(fitted["previous"][run]),
            str(fitted["errors"][run]),
            memories[run],
            None if np.isnan(fits[run]).all() else Fit(*fits[run].tolist()),
        )
        for run, mixture in enumerate(mixtures)
    ]
    return State(
        tuple(runs),
        int(fitted["n_passes"]),
        fitted["random_state"],
        fitted["before_draw"],
        fitted["history"],
        fitted["seed"],
        None
        if fitted["prior_mean"] is None
        else (fitted["prior_mean"], np.asarray(fitted["prior_covariance"])),
    )


def _encode_memories(runs: Sequence[Run[Mixture]]) -> dict[str, Any]:
    """What runs remember, as the bytes of all arrays and a line about each."""
    kept = [
        (i, name, np.asarray(array))
        for i, run in enumerate(runs)
        for name, array in run.memory.items()
    ]
    lines = [
        json.dumps([i, name, array.dtype.str, array.shape]) for i, name, array in kept
    ]
    numbers = b"".join(array.tobytes() for _, _, array in kept)
    return {
        _MEMORY: np.frombuffer(numbers, dtype=np.uint8),
        f"{_MEMORY}_of": np.array(lines, dtype=object),
    }


def _decode_memories(
    fitted: Mapping[str, Any], n_runs: int
) -> list[dict[str, NDArray[Any]]]:
    memories: list[dict[str, NDArray[Any]]] = [{} for _ in range(n_runs)]
    rest = fitted[_MEMORY].tobytes()
    for line in fitted[f"{_MEMORY}_of"]:
        i, name, kind, shape = json.loads(line)
        size = np.dtype(kind).itemsize * math.prod(shape)
        memories[i][name] = np.frombuffer(rest[:size], kind).reshape(shape).copy()
        rest = rest[size:]
    return memories


def _mixtures(fitted: Mapping[str, Any]) -> list[Mixture | None]:
    """The runs' mixtures, each with its own shape and number of components."""
    numbers = {name: fitted[name] for name in _ARRAYS}
    d = int(fitted["n_features"])

    def take(name: str, *shape: int) -> NDArray[np.float64]:
        first, numbers[name] = np.split(numbers[name], [math.prod(shape)])
        return np.array(first.reshape(shape))

    mixtures: list[Mixture | None] = []
    for name, k in zip(fitted["shapes"], map(int, fitted["n_components"]), strict=True):
        if not name:
            mixtures.append(None)
            continue
        shape = SHAPES[name]
        stored = shape.stored(k, d)
        mixtures.append(
            Mixture(
                shape,
                take("weights", k),
                take("means", k, d),
                take("covariances", *stored),
                take("factors", *stored),
            )
        )
    return mixtures
