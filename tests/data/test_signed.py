"""Pieces of S3's objects by signed URLs; and by s3fs where those are not enough."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest
import s3fs
from services import Relay, serving, store_server

from daskgmm.data import signed
from daskgmm.data.signed import Pieces

CONTENT = np.random.default_rng(0).bytes(300_000)
KEYS = {"key": "test", "secret": "test"}


@pytest.fixture(scope="module", params=["moto", "rclone"])
def relay(request, tmp_path_factory):
    """An S3 server behind a relay, with an object in a bucket."""
    folder = tmp_path_factory.mktemp(request.param)
    with (
        store_server(request.param, folder) as port,
        serving(Relay(port)) as relay,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "6")
        patch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        yield relay


@pytest.fixture
def files(relay):
    """A file system of its own, with the object in it."""
    files = s3fs.S3FileSystem(
        endpoint_url=relay.url,
        use_listings_cache=False,
        skip_instance_cache=True,
        **KEYS,
    )
    if not files.exists("bucket"):
        files.mkdir("bucket")
    files.pipe_file("bucket/some name+&é.bin", CONTENT)
    yield files
    signed.forget_connections()
    fsspec.asyn.sync(files.loop, files._s3.close)


@pytest.fixture
def by_s3fs(monkeypatch):
    """Reads that s3fs did, by where they began."""
    asked, fetch = [], s3fs.core._fetch_range

    def counted(fs, bucket, key, version, start, end, *args, **options):
        asked.append(start)
        return fetch(fs, bucket, key, version, start, end, *args, **options)

    monkeypatch.setattr(s3fs.core, "_fetch_range", counted)
    return asked


NAME = "bucket/some name+&é.bin"


def read(pieces, first, n_bytes):
    memory = bytearray(n_bytes)
    pieces.read_into(first, memoryview(memory))
    return bytes(memory)


def test_pieces_are_those_of_the_object_and_s3fs_is_not_asked(files, by_s3fs):
    pieces = Pieces(files, NAME)
    assert pieces.size == len(CONTENT)
    for first, n_bytes in ((0, 10), (1_000, 200_000), (299_990, 10), (0, 300_000)):
        assert read(pieces, first, n_bytes) == CONTENT[first : first + n_bytes]
    assert by_s3fs == []
    pieces.close()


@pytest.mark.parametrize("relay", ["moto"], indirect=True)
def test_a_public_object_is_read_without_credentials(relay, files, by_s3fs):
    files.pipe_file(NAME, CONTENT)
    files.chmod(NAME, "public-read")
    nobody = s3fs.S3FileSystem(
        anon=True, endpoint_url=relay.url, skip_instance_cache=True
    )
    pieces = Pieces(nobody, NAME)
    assert "Signature" not in pieces._signed_url()
    assert read(pieces, 7, 1_000) == CONTENT[7:1_007]
    assert by_s3fs == []
    fsspec.asyn.sync(nobody.loop, nobody._s3.close)


def test_several_threads_read_at_once(files, by_s3fs):
    pieces, found = Pieces(files, NAME), {}

    def some(first):
        found[first] = read(pieces, first, 10_000)

    threads = [threading.Thread(target=some, args=(10_000 * i,)) for i in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(found[first] for first in sorted(found)) == CONTENT
    assert by_s3fs == []


def test_more_than_there_is_is_an_error(files):
    with pytest.raises(OSError, match=r"ends at byte 300000, too early"):
        read(Pieces(files, NAME), 299_000, 2_000)


def test_what_fails_is_asked_of_s3fs_which_asks_again(relay, files, by_s3fs):
    pieces = Pieces(files, NAME)
    with relay.failing(4, ways=("refuse", "drop", "lose")):
        for first in range(0, 300_000, 10_000):
            assert read(pieces, first, 10_000) == CONTENT[first : first + 10_000]
        assert relay.failed > 3
    assert 0 < len(by_s3fs) < 30  # the next piece is asked for as before


@pytest.mark.parametrize("relay", ["moto"], indirect=True)  # rclone never refuses
def test_another_object_in_its_place_is_not_read(files):
    pieces = Pieces(files, NAME)
    assert read(pieces, 0, 10) == CONTENT[:10]
    files.pipe_file(NAME, CONTENT[::-1])
    with pytest.raises(s3fs.utils.FileExpired):
        read(pieces, 0, 10)


class _Picky(BaseHTTPRequestHandler):
    """Refuses what has its signature in the URL, or gives the whole for a piece."""

    protocol_version = "HTTP/1.1"

    def _answer(self):
        server = self.server
        is_signed = "Signature=" in self.path
        server.asked.append(is_signed)
        body = CONTENT if server.whole and is_signed else b""
        status = 200 if body else 403
        if not is_signed:
            status, body = 206, CONTENT[:10]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.command == "HEAD":
            self.send_header("ETag", '"x"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD = _answer

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("whole", [True, False])
def test_who_takes_no_signed_urls_is_not_asked_twice(whole, monkeypatch):
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Picky)
    server.daemon_threads, server.block_on_close = True, False
    server.asked, server.whole = [], whole
    with serving(server):
        url = f"http://127.0.0.1:{server.server_port}"
        files = s3fs.S3FileSystem(
            endpoint_url=url, skip_instance_cache=True, use_listings_cache=False, **KEYS
        )
        for _ in range(2):
            pieces = Pieces(files, "bucket/x")
            for _ in range(2):
                assert read(pieces, 0, 10) == CONTENT[:10]
        assert server.asked.count(True) == 1
        signed.forget_connections()
        fsspec.asyn.sync(files.loop, files._s3.close)


@pytest.mark.parametrize(
    "options",
    [
        {"requester_pays": True},
        {"version_aware": True},
        {"s3_additional_kwargs": {"SSECustomerKey": "k"}},
        {"config_kwargs": {"proxies": {"http": "http://127.0.0.1:1"}}},
        {"client_kwargs": {"verify": "/some/file"}},
    ],
)
def test_options_that_make_other_requests_are_left_to_s3fs(options):
    files = s3fs.S3FileSystem(skip_instance_cache=True, **KEYS, **options)
    assert not signed._can_be_signed(files)
    same = {"endpoint_url": "http://a", "client_kwargs": {"region_name": "b"}}
    assert signed._can_be_signed(
        s3fs.S3FileSystem(skip_instance_cache=True, **KEYS, **same)
    )


def test_behind_a_proxy_and_elsewhere_it_is_left_to_the_library(monkeypatch):
    files = s3fs.S3FileSystem(skip_instance_cache=True, **KEYS)
    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        assert not signed._can_be_signed(files)
        monkeypatch.delenv(name)
    assert signed._can_be_signed(files)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/x", CONTENT)
    pieces = Pieces(memory, "/x")
    assert read(pieces, 5, 10) == CONTENT[5:15]


def test_who_reads_a_file_that_all_who_open_it_share_is_not_disturbed():
    """As those of fsspec's memory: their position is everybody's."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shared", CONTENT)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    wrong, done = [], threading.Event()

    def some(offset):
        pieces = Pieces(memory, "/shared")
        for first in range(offset, 290_000, 97):
            if read(pieces, first, 50) != CONTENT[first : first + 50]:
                wrong.append(first)

    def others():
        while not done.is_set():
            Pieces(memory, "/shared")

    try:
        threads = [threading.Thread(target=some, args=(i,)) for i in range(4)]
        disturbing = threading.Thread(target=others)
        for thread in (disturbing, *threads):
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        done.set()
        disturbing.join()
        sys.setswitchinterval(before)
    assert wrong == []
