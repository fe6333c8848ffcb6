"""Where work is done: on threads and on Dask, in one order of sums."""
