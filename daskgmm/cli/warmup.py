"""``daskgmm warmup``: what it does, and when it helps."""

from __future__ import annotations

import click


@click.command()
def warmup() -> None:
    """Compile the kernel, and keep it for all processes that follow.

    The first fit after an installation does so, which takes half a minute to two; so
    does each worker that starts where nothing is kept, as in a new container. Run this
    once in an image, or on a file system that workers share; NUMBA_CACHE_DIR in the
    environment says where it is kept, if not beside the package.
    """
    from daskgmm.cli.work.warmup import warmup as work

    work()
