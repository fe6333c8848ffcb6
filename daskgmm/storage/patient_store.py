"""Stores for Zarr that are asked again when they fail."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from zarr.abc.store import Store
from zarr.storage import WrapperStore

from daskgmm import config
from daskgmm.storage.retry import is_failure, pauses
from daskgmm.storage.urls import absolute, as_path, files_of
from daskgmm.storage.zarr_internals import make_store_path, sync

_T = TypeVar("_T")


class _PatientStore(WrapperStore[Any]):
    """A store whose requests are made again when they fail, each for itself.

    Of the many requests that write a group, one always fails if one in ten does.
    """

    async def get(self, *args: Any, **options: Any) -> Any:
        return await _again(lambda: self._store.get(*args, **options))

    async def get_partial_values(self, *args: Any, **options: Any) -> Any:
        return await _again(lambda: self._store.get_partial_values(*args, **options))

    async def exists(self, key: str) -> bool:
        return await _again(lambda: self._store.exists(key))

    async def set(self, *args: Any, **options: Any) -> None:
        await _again(lambda: self._store.set(*args, **options))

    async def set_if_not_exists(self, *args: Any, **options: Any) -> None:
        await _again(lambda: self._store.set_if_not_exists(*args, **options))

    async def is_empty(self, prefix: str) -> bool:
        return await _again(lambda: self._store.is_empty(prefix))

    async def delete(self, key: str) -> None:
        await _again(lambda: self._store.delete(key))

    async def delete_dir(self, prefix: str) -> None:
        await _again(lambda: self._store.delete_dir(prefix))

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async def names() -> list[str]:
            return [name async for name in self._store.list_prefix(prefix)]

        for name in await _again(names):
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        async def names() -> list[str]:
            return [name async for name in self._store.list_dir(prefix)]

        for name in await _again(names):
            yield name


async def _again(request: Callable[[], Awaitable[_T]]) -> _T:
    for pause in pauses(config.count("storage-retries")):
        try:
            return await request()
        except Exception as error:
            if not is_failure(error):
                raise
            await asyncio.sleep(pause)
    return await request()


def patient_store(place: str | os.PathLike[str], *, writable: bool) -> Store:
    """A place as a store for Zarr that makes requests again when they fail.

    Opened without a request: what Zarr asks for it asks the store that is given back.
    Errors as of `files_of`.
    """
    mode: Any = "a" if writable else "r"
    where = as_path(absolute(place))
    files_of(where)  # it says what is wanting
    return _PatientStore(sync(make_store_path(where, mode=mode)).store)
