"""Rows in stores, handed over in every way, and what counts how they are read."""

from __future__ import annotations

import threading
from itertools import pairwise

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from conftest import create_zarr

from daskgmm import GaussianMixture

ROWS, CHUNK = 6500, 100


def create(place, x, **layout):
    names = ("row", "feature")
    layout = {"chunks": (CHUNK, 2), "dimension_names": names, **layout}
    return create_zarr(place, x, **layout)


def model(**parameters):
    return GaussianMixture(3, random_state=0, max_iter=3, **parameters)


def chunk_file(folder, number):
    [path] = folder.glob(f"c/{number}/0")
    return path


def as_given(folder):
    """A store, in each way that it can be handed over."""
    array = zarr.open_array(str(folder), mode="r")
    return {
        "path": folder,
        "array": array,
        "dask": da.from_zarr(array),
        "computed": da.from_zarr(array) + 1.0,
        "inlined": da.from_zarr(array, inline_array=True) + 1.0,
        "xarray": in_xarray(folder),
    }


def in_xarray(folder, **options):
    """The array of a folder as xarray opens the group around it."""
    zarr.open_group(str(folder.parent), mode="a")
    found = xr.open_zarr(folder.parent, consolidated=False, **options)
    return found[folder.name]


KINDS = ("path", "array", "dask", "computed", "inlined", "xarray")


class Reader:
    """Rows made block by block, with a count of the reads of each."""

    def __init__(self, x, size):
        self.x, self.size = x, size
        self.counts = np.zeros(-(-len(x) // size), dtype=int)
        self.lock = threading.Lock()

    def read(self, block_id):
        with self.lock:
            self.counts[block_id[0]] += 1
        start = block_id[0] * self.size
        return self.x[start : start + self.size].copy()

    def array(self):
        n, d = self.x.shape
        ends = [*range(0, n, self.size), n]
        sizes = tuple(b - a for a, b in pairwise(ends))
        return da.map_blocks(
            lambda block_id=None: self.read(block_id),
            chunks=(sizes, (d,)),
            dtype=self.x.dtype,
            meta=np.empty((0, 0), dtype=self.x.dtype),
        )
