"""All names of Zarr's that are not public and are used here, each with the reason."""

from zarr.core.sync import sync as sync
from zarr.storage._common import make_store_path as make_store_path

# sync: stores have coroutines only, and those must run in the loop that Zarr runs them
# in, as clients of object stores belong to one loop.
# make_store_path: the only way from a URL to its store, without a request, that knows
# all that Zarr's own functions know.
