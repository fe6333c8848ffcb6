"""Pieces of S3's objects, read by signed URLs in whichever thread wants them.

s3fs reads for all threads of a process in a single one, and takes three times the
processor's time. It says where an object is and signs the URL, so that credentials,
endpoints and regions are as the user has set them; and it reads itself what a plain
request does not get.
"""

from __future__ import annotations

import atexit
import io
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import monotonic
from typing import Any, Final, final
from urllib.parse import SplitResult, urlsplit

from daskgmm.execution.forking import after_fork

_SECONDS_SIGNED: Final = 3600
_SECONDS_USED: Final = 300
"""A URL is signed anew long before it ends, as credentials may end sooner."""
_KEPT: Final = 16
_SECONDS: Final = 15
"""To wait for an answer, or for more of it."""
_OPTIONS: Final = frozenset(
    ["anon", "endpoint_url", "key", "secret", "token", "username", "password"]
    + ["client_kwargs", "profile", "cache_regions", "max_concurrency", "use_ssl"]
    + ["default_block_size", "default_fill_cache", "default_cache_type"]
    + ["skip_instance_cache", "use_listings_cache", "listings_expiry_time"]
)
_CLIENT_OPTIONS: Final = frozenset(
    ["endpoint_url", "region_name", "use_ssl", "aws_access_key_id"]
    + ["aws_secret_access_key", "aws_session_token"]
)
"""Options that are in the URL, or make no difference to a request. Others may."""
_FOUND: Final = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
_FOR_GOOD: Final = (
    HTTPStatus.OK,
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
)
"""Answers of whoever gives no pieces, or takes no signed URLs: not asked again."""

_refused: Final[set[tuple[Any, str]]] = set()
"""File systems and buckets of which one such answer came."""
_Server = tuple[str, str]
"""A scheme and a host."""
_idle: Final[deque[tuple[_Server, HTTPConnection]]] = deque()
"""Open connections of this process that nobody uses now."""


def forget_connections() -> None:
    """Close all connections that are kept for later."""
    while _idle:
        _idle.pop()[1].close()


atexit.register(forget_connections)
after_fork(forget_connections)  # one that two processes use gives both's answers


@final
class Pieces:
    """An object, or file, of which pieces are read by several threads.

    Parameters
    ----------
    files : fsspec.AbstractFileSystem
    path : str

    Attributes
    ----------
    details : mapping
        What fsspec tells of it.
    size : int
        Bytes.
    """

    def __init__(self, files: Any, path: str) -> None:
        self._files, self._path = files, path
        self._may_sign = _can_be_signed(files)
        # What is fetched ahead by fsspec would be in vain: pieces lie apart.
        self._opened = files.open(path, "rb", cache_type="none")
        self._one_at_a_time = threading.Lock()
        self._url: str | None = None
        self._signed = 0.0
        self.details = getattr(self._opened, "details", None) or files.info(path)
        self.size = int(self.details["size"])

    def read_into(self, first: int, memory: memoryview) -> None:
        """Fill memory with the bytes from a place on.

        Raises
        ------
        OSError
            If there are not so many. And whatever the store's library raises.
        """
        if self._may_sign and self._requested(first, memory):
            return
        found = self._read(first, len(memory))
        if len(found) < len(memory):
            raise OSError(f"{self._path} ends at byte {first + len(found)}, too early.")
        memory[:] = found

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def _read(self, first: int, n_bytes: int) -> bytes:
        """What the file has from a place on, at most so many bytes."""
        if isinstance(self._opened, io.BytesIO):
            # fsspec's memory: one file for all who open it, and with it its position.
            return self._opened.getvalue()[first : first + n_bytes]
        with self._one_at_a_time:
            self._opened.seek(first)
            found: bytes = self._opened.read(n_bytes)
        return found

    def _requested(self, first: int, memory: memoryview) -> bool:
        """Whether a plain request was answered; not if it is refused, or fails."""
        bucket = self._files, self._path.partition("/")[0]
        if bucket in _refused:
            return False
        headers = {"Range": f"bytes={first}-{first + len(memory) - 1}"}
        if etag := self.details.get("ETag"):
            headers["If-Match"] = etag
        status = _get(urlsplit(self._signed_url()), headers, memory)
        if status in _FOR_GOOD:
            _refused.add(bucket)
        return status is None

    def _signed_url(self) -> str:
        if self._url is None or monotonic() - self._signed > _SECONDS_USED:
            self._url = str(self._files.sign(self._path, expiration=_SECONDS_SIGNED))
            self._signed = monotonic()
        return self._url


def _can_be_signed(files: Any) -> bool:
    """Whether plain requests are what this file system would ask."""
    options = files.storage_options
    return (
        "s3" in files.protocol
        and _OPTIONS.issuperset(options)
        and _CLIENT_OPTIONS.issuperset(options.get("client_kwargs") or ())
        and not {"http", "https", "all"} & urllib.request.getproxies().keys()
    )


def _get(url: SplitResult, headers: dict[str, str], memory: memoryview) -> int | None:
    """Fill memory with what an answer has; or the status of one that has not that.

    That is 0 without an answer: s3fs asks again then, and says what is wrong.
    """
    server = url.scheme, url.netloc
    for connection in _connections(server):
        try:
            connection.request("GET", f"{url.path}?{url.query}", headers=headers)
            answer = connection.getresponse()
            is_it = answer.status in _FOUND and answer.length == len(memory)
            if is_it and _fill(memory, answer):
                _keep(server, connection)
                return None
        except (HTTPException, OSError):
            connection.close()
            continue
        # Whoever gives no pieces gives all there is: that is not waited for.
        connection.close()
        return 0 if "Content-Range" in answer.headers else answer.status
    return 0


def _keep(server: _Server, connection: HTTPConnection) -> None:
    _idle.append((server, connection))
    if len(_idle) > _KEPT:
        _idle.popleft()[1].close()


def _connections(server: _Server) -> Iterator[HTTPConnection]:
    """One that was kept, which the server may have closed meanwhile; and a new one."""
    for _ in range(len(_idle)):
        try:
            kept = _idle.popleft()
        except IndexError:  # another thread was faster
            break
        if kept[0] == server:
            yield kept[1]
            break
        _idle.append(kept)
    kind = HTTPSConnection if server[0] == "https" else HTTPConnection
    yield kind(server[1], timeout=_SECONDS)


def _fill(memory: memoryview, answer: HTTPResponse) -> bool:
    """Whether an answer had as many bytes as there is memory."""
    n_bytes = 0
    while n_bytes < len(memory) and (more := answer.readinto(memory[n_bytes:])):
        n_bytes += more
    return n_bytes == len(memory)
