"""Outputs: written block by block, and never whole before they are."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import warnings

import dask
import dask.array as da
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import zarr
from distributed import Client, LocalCluster
from fsspec.implementations.memory import MemoryFileSystem
from services import program, store_server

from daskgmm import GaussianMixture, StoreError, load, open_rows, steps
from daskgmm.errors import ClusterError
from daskgmm.outputs import base, inspect, parquet_output, zarr_output

IDENTITY = {"kind": "labels", "model": "m", "shape": (5, 2)}


def answers(n=1000, rows=100, width=None, dtype=np.int64):
    shape = (n,) if width is None else (n, width)
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    return values, da.from_array(values, chunks=(rows, *shape[1:]))


def work(*, overwrite=False, identity=IDENTITY, **options):
    return base.Work(identity, overwrite, **options)


def observed(observer):
    """Have a function called with the number of parts that are done, and of all."""

    def listen(step):
        if step.of is not None:
            observer(step.done, step.of)

    return steps.told_to(listen) if observer else contextlib.nullcontext()


def write_zarr(answer, url, *, observer=None, **options):
    with observed(observer):
        return zarr_output.write_zarr(answer, str(url), work(**options))


def write_parquet(
    answer, url, *, names=("a",), keys=(), keyed=None, observer=None, **options
):
    columns = {"names": names, "keys": keys, "keyed": keyed}
    with observed(observer):
        return parquet_output.write_parquet(
            answer, str(url), work(**options), **columns
        )


WRITERS = {"out.zarr": write_zarr, "out.parquet": write_parquet}


@pytest.fixture(params=list(WRITERS))
def out(request, tmp_path):
    return tmp_path / request.param


@pytest.fixture
def write(out):
    return WRITERS[out.name]


def read(out):
    """All that is in an output, in order."""
    if out.suffix != ".parquet":
        return zarr.open_array(str(out), mode="r")[:]
    return np.column_stack(pq.read_table(out).columns).squeeze(axis=1)


def parts(out):
    found = out.glob("c/*") if out.suffix != ".parquet" else out.glob("part-*")
    return sorted(found, key=lambda path: (len(path.name), path.name))


def contents(folder):
    """Bytes of all files in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def described(out):
    if out.suffix != ".parquet":
        return zarr.open_array(str(out), mode="r").attrs["daskgmm"]
    return json.loads((out / "_daskgmm.json").read_text())


class Interrupted(Exception):
    """Raised in the middle of a write."""


def interrupt(write, answer, out, after=3, **options):
    """Break a write off after some parts."""

    def observer(done, of):
        if done == after:
            raise Interrupted

    with dask.config.set(scheduler="sync"), pytest.raises(Interrupted):
        write(answer, out, observer=observer, **options)


@pytest.mark.parametrize("width", [None, 3])
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_zarr_holds_the_answer(tmp_path, width, dtype):
    expected, answer = answers(width=width, dtype=dtype)
    written = write_zarr(answer, tmp_path / "out")
    assert (written.n_rows, written.n_parts, written.n_found) == (1000, 10, 0)
    array = zarr.open_array(str(tmp_path / "out"), mode="r")
    assert np.array_equal(array[:], expected)
    assert array.dtype == dtype
    assert array.chunks[0] == 100
    assert array.shards is None
    said = {"complete", "identity", "layout", "versions"}
    assert described(tmp_path / "out").keys() == said


def test_small_chunks_are_sharded(tmp_path):
    expected, answer = answers(n=10_050, rows=100, width=2, dtype=np.float64)
    written = write_zarr(answer, tmp_path / "out.zarr")
    array = zarr.open_array(str(tmp_path / "out.zarr"), mode="r")
    assert np.array_equal(array[:], expected)
    assert array.chunks == (100, 2)
    assert array.shards == (600, 2)
    assert written.n_parts == len(list((tmp_path / "out.zarr" / "c").iterdir())) == 17


def test_a_flipped_bit_in_a_shard_is_noticed(tmp_path):
    write_zarr(answers(n=10_000)[1], tmp_path / "out.zarr")
    shard = parts(tmp_path / "out.zarr")[3]
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        read(tmp_path / "out.zarr")


@pytest.mark.parametrize("lengths", [(70, 0, 130, 1, 0), (0, 0), (5,), (3, 100, 3)])
@pytest.mark.parametrize("unknown", [False, True])
def test_blocks_of_any_length(out, write, lengths, unknown):
    expected = np.arange(sum(lengths), dtype=np.float64)
    answer = da.from_array(expected, chunks=(lengths,))
    if unknown:
        answer = answer[answer >= 0]
        assert np.isnan(answer.shape[0])
    assert write(answer, out).n_rows == sum(lengths)
    assert np.array_equal(read(out), expected)
    assert described(out)["complete"] is True


def test_parquet_has_a_file_for_each_block(tmp_path):
    expected, answer = answers(n=250, width=2, dtype=np.float32)
    out = tmp_path / "out.parquet"
    write_parquet(answer, out, names=("p", "q"))
    assert [path.name for path in parts(out)] == [
        f"part-{i:05}.parquet" for i in range(3)
    ]
    table = pq.read_table(out)
    assert table.column_names == ["p", "q"]
    assert np.array_equal(np.column_stack(table.columns), expected)
    listed = described(out)["files"]
    assert [entry["rows"] for entry in listed] == [100, 100, 50]
    assert [e["bytes"] for e in listed] == [p.stat().st_size for p in parts(out)]


class Table:
    """Rows with more columns than were asked about."""

    def __init__(self, table, rows):
        self.table, self.rows = table, rows

    def read_table(self, index, columns):
        block = self.table.slice(index * self.rows, self.rows)
        return block.select(list(columns))


def test_keys_are_carried_along(tmp_path):
    expected, answer = answers(n=250)
    ids = [f"row {i}" for i in range(250)]
    table = pa.table({"x": np.zeros(250), "id": ids, "day": np.arange(250) % 7})
    out = tmp_path / "out.parquet"
    keyed = Table(table, 100)
    write_parquet(answer, out, keys=("day", "id"), keyed=keyed)
    found = pq.read_table(out)
    assert found.column_names == ["day", "id", "a"]
    assert found["id"].to_pylist() == ids
    assert np.array_equal(found["a"], expected)
    with pytest.raises(ValueError, match="'day' has the name"):
        write_parquet(answer, out, names=("day",), keys=("day",), keyed=keyed)
    with pytest.raises(StoreError, match=r"\d+ keys for the \d+ rows of part-"):
        short = Table(table, 99)
        write_parquet(answer, tmp_path / "o.parquet", keys=("id",), keyed=short)


def test_a_broken_write_goes_on(out, write, tmp_path):
    _, answer = answers()
    interrupt(write, answer, out)
    assert described(out)["complete"] is False
    # Without a cluster, parts are written a few at a time.
    before = {path: path.stat().st_mtime_ns for path in parts(out)}
    assert 3 <= len(before) < 10
    standing = inspect.standing(str(out))
    assert not standing.complete
    assert (standing.n_parts, standing.n_missing) == (10, 10 - len(before))
    written = write(answer, out)
    assert written.n_found == len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    undisturbed = tmp_path / "undisturbed" / out.name
    write(answer, undisturbed)
    assert contents(out) == contents(undisturbed)
    assert inspect.standing(str(out)) == base.Standing(10, 0, True)


def test_a_broken_write_of_shards_goes_on(tmp_path):
    expected, answer = answers(n=10_050)
    out = tmp_path / "out.zarr"
    interrupt(write_zarr, answer, out)
    assert 3 <= len(parts(out)) < 17
    write_zarr(answer, out)
    assert np.array_equal(read(out), expected)


def test_parts_that_cannot_be_read_are_written_anew(out, write):
    expected, answer = answers()
    interrupt(write, answer, out)
    first, second, *_ = parts(out)
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-7])
    leftover = parts(out)[0].with_name(".part-00009.parquet.0123")
    if out.suffix != ".parquet":
        leftover = out / "c" / "9.0123.partial"
    leftover.write_bytes(b"abc")
    write(answer, out)
    assert np.array_equal(read(out), expected)
    assert not leftover.exists()


def test_a_part_that_is_lost_is_noticed(out, write):
    _, answer = answers()

    def observer(done, of):
        if done == of:
            parts(out)[4].unlink()

    with pytest.raises(StoreError, match="1 parts .* are not there") as caught:
        write(answer, out, observer=observer)
    assert "Give the same command again to resume" in " ".join(caught.value.__notes__)
    assert described(out)["complete"] is False
    assert write(answer, out).n_found == 9


def test_a_part_that_is_lost_later_is_written_again(out, write):
    expected, answer = answers()
    write(answer, out)
    parts(out)[4].unlink()
    assert inspect.standing(str(out)) == base.Standing(10, 1, True)
    with pytest.raises(FileExistsError, match="exists: pass --overwrite"):
        write(answer, out, identity={"kind": "another"})
    assert write(answer, out).n_found == 9
    assert np.array_equal(read(out), expected)
    with pytest.raises(FileExistsError, match="exists: pass --overwrite"):
        write(answer, out)


def test_an_unfinished_output_of_another_command_is_refused(out, write):
    expected, answer = answers()
    interrupt(write, answer, out)
    before = contents(out)
    other = {"identity": {**IDENTITY, "kind": "proba"}}
    said = "unfinished .* kind was 'labels' and is 'proba'"
    with pytest.raises(FileExistsError, match=said):
        write(answer, out, **other)
    with pytest.raises(FileExistsError, match=said):
        inspect.check(str(out), work(**other))
    with pytest.raises(FileExistsError, match="unfinished .* (chunks|files) was"):
        write(answer.rechunk(50), out)
    assert contents(out) == before
    assert write(answer, out, overwrite=True, **other).n_found == 0
    assert np.array_equal(read(out), expected)


def test_a_complete_output_is_replaced_only_when_told(out, write):
    expected, answer = answers()
    write(answer + 1, out)
    for place in (lambda: write(answer, out), lambda: check(out)):
        with pytest.raises(FileExistsError, match="exists: pass --overwrite"):
            place()
    assert np.array_equal(read(out), expected + 1)
    few = answer[:150]
    write(few, out, overwrite=True)
    assert np.array_equal(read(out), expected[:150])
    assert len(parts(out)) == 2


def check(out):
    inspect.check(str(out), work())


def test_overwriting_goes_on_with_its_own(out, write):
    _, answer = answers()
    interrupt(write, answer, out)
    n_parts = len(parts(out))
    assert write(answer, out, overwrite=True).n_found == n_parts


def test_what_is_something_else_is_never_replaced(out, write):
    out.mkdir()
    (out / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match="choose another place"):
        write(answers()[1], out, overwrite=True)
    assert contents(out) == {"thesis.txt": b"irreplaceable"}


def test_what_a_write_left_before_it_described_itself_is_nothing(out, write):
    out.mkdir()
    (out / ("zarr.json" if out.suffix != ".parquet" else "._daskgmm.json.0")).touch()
    write(answers()[1], out)
    assert described(out)["complete"] is True


def test_a_dead_command_does_not_write_into_a_new_output(out, write):
    """What it left on a cluster may run later than the next command begins."""
    _, answer = answers(n=100)
    write(answer, out)
    with pytest.raises(StoreError, match="Another command writes"):
        if out.suffix != ".parquet":
            zarr_output._write_chunk(str(out), "run", 0, [np.zeros(5)], slice(0, 5))
        else:
            name = "part-00000.parquet"
            parquet_output._write_file(str(out), "run", name, np.zeros(5), ("a",), None)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """An S3 server that plain s3:// URLs lead to, and a client of its own."""
    with (
        store_server("moto", tmp_path_factory.mktemp("s3")) as port,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        # Instances are kept for each set of options, and the environment is not one.
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        files.mkdir("bucket")
        yield files
        s3fs.S3FileSystem.clear_instance_cache()
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()  # Zarr leaves its connections open


@pytest.mark.parametrize("name", list(WRITERS))
def test_on_an_object_store(s3, name):
    expected, answer = answers()
    write, out = WRITERS[name], f"s3://bucket/{name}"
    interrupt(write, answer, out)
    assert 3 <= 10 - inspect.standing(out).n_missing < 10
    with pytest.raises(FileExistsError, match="unfinished"):
        write(answer, out, identity={"kind": "proba"})
    assert write(answer, out).n_found >= 3
    assert inspect.standing(out) == base.Standing(10, 0, True)
    if name.endswith("zarr"):
        found = zarr.open_array(out, mode="r")[:]
    else:
        found = pq.read_table(f"bucket/{name}", filesystem=s3)["a"]
    assert np.array_equal(found, expected)
    with pytest.raises(FileExistsError, match="exists: pass --overwrite"):
        write(answer, out)
    assert write(answer[:250], out, overwrite=True).n_parts == 3
    assert inspect.standing(out) == base.Standing(3, 0, True)
    # Nothing is left of the old one, nor of temporary names.
    kept = "zarr.json" if name.endswith("zarr") else "_daskgmm.json"
    assert len(s3.find(f"bucket/{name}")) == 4
    assert s3.exists(f"bucket/{name}/{kept}")
    assert not s3.find(f"bucket/.new-{name}")


def test_on_a_cluster(out, write):
    expected, answer = answers()
    seen = []
    with (
        LocalCluster(
            n_workers=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        write(answer, out, observer=lambda done, of: seen.append((done, of)))
    assert np.array_equal(read(out), expected)
    assert seen == [(i, 10) for i in range(1, 11)]


def test_without_workers_it_ends_in_bounded_time(out, write):
    _, answer = answers()
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
        dask.config.set({"daskgmm.no-workers-timeout": "1s"}),
        pytest.raises(ClusterError, match="has had no workers for 1 s"),
    ):
        write(answer, out)
    assert described(out)["complete"] is False


def test_an_error_on_a_cluster_leaves_what_is_done(out, write):
    expected, answer = answers(dtype=np.float64)

    def fail(block, block_id):
        if block_id[0] == 9:
            raise ZeroDivisionError("in block 9")
        return block

    broken = answer.map_blocks(fail, dtype=float)
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster),
        pytest.raises(ZeroDivisionError) as caught,
    ):
        write(broken, out)
    assert "Give the same command again to resume" in " ".join(caught.value.__notes__)
    assert described(out)["complete"] is False
    n_parts = len(parts(out))
    assert n_parts > 0
    # The worker may have been at one more, and have written it since.
    assert n_parts <= write(answer, out).n_found <= n_parts + 1
    assert np.array_equal(read(out), expected)


# --- what is replaced, and when -------------------------------------------------------


def test_the_old_output_stays_until_the_new_one_is_complete(out, write):
    expected, answer = answers()
    write(answer, out)
    before = contents(out)
    other = {"overwrite": True, "identity": {"kind": "proba"}}
    interrupt(write, answer + 1, out, **other)
    assert contents(out) == before
    aside = out.with_name(f".new-{out.name}")
    n_parts = len(parts(aside))
    assert 0 < n_parts < 10
    # The same command goes on with the new one, and another one begins anew.
    assert write(answer + 1, out, **other).n_found == n_parts
    assert np.array_equal(read(out), expected + 1)
    interrupt(write, answer + 2, out, **other)
    third = {"overwrite": True, "identity": {"kind": "log-density"}}
    assert write(answer + 3, out, **third).n_found == 0
    assert np.array_equal(read(out), expected + 3)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("left", ["old", "nothing"])
def test_a_replacement_that_broke_off_when_all_was_written(out, write, left):
    """The new one is complete beside the old one, or the old one is gone already."""
    expected, answer = answers()
    write(answer + 1, out.with_name(f".new-{out.name}"))
    if left == "old":
        write(answer, out, identity={"kind": "proba"})
    assert write(answer, out, overwrite=left == "old").n_found == 10
    assert np.array_equal(read(out), expected + 1)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_what_others_wrote_is_never_replaced(out, write):
    values, answer = answers()
    if out.suffix == ".parquet":
        out.mkdir()
        pq.write_table(pa.table({"a": values}), out / "part-00000.parquet")
    else:
        zarr.create_array(out, data=values)
    before = contents(out)
    for overwrite in (False, True):
        with pytest.raises(
            FileExistsError, match=r"program (did not write|\.)|by this"
        ):
            write(answer, out, overwrite=overwrite)
    assert contents(out) == before


@pytest.mark.parametrize(
    "around", ["array", "array of Zarr 2", "model", "output", "Parquet", "Delta Lake"]
)
def test_nothing_is_written_inside_what_it_would_spoil(tmp_path, write, out, around):
    folder = tmp_path / "a"
    if around == "array":
        zarr.create_array(folder, data=np.zeros((4, 2)))
    elif around == "array of Zarr 2":
        zarr.create_array(folder, data=np.zeros((4, 2)), zarr_format=2)
    elif around == "model":
        fitted().save(str(folder))
    elif around == "Parquet":
        folder = tmp_path / "of others.parquet"
        folder.mkdir()
        pq.write_table(pa.table({"a": [1.0]}), folder / "part-0.parquet")
    elif around == "Delta Lake":
        (folder / "_delta_log").mkdir(parents=True)
    else:
        folder = tmp_path / "a.parquet"
        write_parquet(answers()[1], folder)
    before = contents(folder)
    for inside in (folder / out.name, folder / "deep" / "er" / out.name):
        with pytest.raises(
            FileExistsError, match=f"lies inside {folder}, which is an?"
        ):
            write(answers()[1], inside, overwrite=True)
        with pytest.raises(
            FileExistsError, match=f"lies inside {folder}, which is an?"
        ):
            fitted().save(inside, overwrite=True)
        with pytest.raises(
            FileExistsError, match=f"lies inside {folder}, which is an?"
        ):
            fitted(checkpoint=inside)
    assert contents(folder) == before


def fitted(**options):
    x = np.random.default_rng(0).normal(size=(50, 2))
    return GaussianMixture(2, random_state=0, tol=1.0).fit(x, **options)


def test_a_checkpoint_replaces_nothing_else(tmp_path):
    for name in ("slot-0", "slot-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("irreplaceable")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"slot-0 exists and is not a model"):
        fitted(checkpoint=tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["path", "array", "weights", "Parquet"])
def test_a_checkpoint_apart_from_the_data(tmp_path, kind):
    x = np.random.default_rng(0).normal(size=(50, 2))
    place = tmp_path / ("x.parquet" if kind == "Parquet" else "x.zarr")
    weights = None
    if kind == "Parquet":
        place.mkdir()
        pq.write_table(pa.table({"a": x[:, 0]}), place / "0.parquet")
        rows = open_rows(place)
    else:
        rows = place if kind == "path" else zarr.create_array(place, data=x)
    if kind == "path":
        zarr.create_array(place, data=x)
    if kind == "weights":
        place, weights = tmp_path / "w.zarr", tmp_path / "w.zarr"
        zarr.create_array(place, data=np.ones(50))
    before = contents(place)
    model = GaussianMixture(1)
    for checkpoint in (place, place / "c", f"file://{place}/", tmp_path):
        with pytest.raises(ValueError, match=r"checkpoint \(.*Choose another place"):
            model.fit(rows, sample_weight=weights, checkpoint=checkpoint)
    assert contents(place) == before


def test_names_with_wild_cards_are_refused_where_they_may_be_globs(write, out):
    _, answer = answers()
    place = f"memory://a[1]/{out.name}"
    with pytest.raises(ValueError, match="wild cards"):
        write(answer, place)
    with pytest.raises(ValueError, match="wild cards"):
        fitted().save(place)
    with pytest.raises(ValueError, match="wild cards"):
        fitted(checkpoint=place)
    # On a disk they are names as any other.
    folder = out.parent / "a[1]"
    folder.mkdir()
    (out.parent / "a1").mkdir()
    for _ in range(2):
        write(answer, folder / out.name, overwrite=True)
    assert len(parts(folder / out.name)) == 10
    assert not list((out.parent / "a1").iterdir())


def test_parts_of_rows_that_were_changed_are_written_anew(out, write):
    """The others stay, when a command is given again that was broken off."""
    _, answer = answers()
    versions = {first: "old" for first in range(0, 1000, 100)}

    def version(first, stop):
        assert stop == first + 100
        return versions[first]

    interrupt(write, answer, out, versions=version)
    there = [int(path.stem.removeprefix("part-")) for path in parts(out)]
    versions[100 * there[0]] = "new"
    found = write(answer + 1, out, versions=version).n_found
    assert found == len(there) - 1
    values = read(out)
    first = 100 * there[0]
    assert np.array_equal(
        values[first : first + 100], np.arange(first, first + 100) + 1
    )
    last = 100 * there[-1]
    assert np.array_equal(values[last : last + 100], np.arange(last, last + 100))


@pytest.mark.parametrize("n_copied", [0, 4, 10])
def test_a_replacement_in_a_store_of_objects_that_breaks_off(write, out, n_copied):
    """There objects are copied one by one: until the last, the output is not whole."""
    expected, answer = answers()
    folder = f"{out.suffix}{n_copied}"
    place, copy, n = f"memory://{folder}/{out.name}", MemoryFileSystem.cp_file, 0

    def break_off(self, *args, **options):
        nonlocal n
        if n == n_copied:
            raise Interrupted
        n += 1
        return copy(self, *args, **options)

    write(answer, place)
    again = {"overwrite": True, "identity": {"kind": "proba"}}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(MemoryFileSystem, "cp_file", break_off)
        write(answer[:950] + 1, place, **again)
    assert not inspect.standing(place).complete
    assert write(answer[:950] + 1, place, **again).n_found == 10
    assert inspect.standing(place) == base.Standing(10, 0, True)
    files = fsspec.filesystem("memory")
    if out.suffix == ".parquet":
        found = pq.read_table(f"/{folder}/{out.name}", filesystem=files)["a"]
    else:
        found = zarr.open_array(place, mode="r")[:]
    assert np.array_equal(found, expected[:950] + 1)
    assert files.ls(f"/{folder}", detail=False) == [f"/{folder}/{out.name}"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [program("mount"), "-t", "tmpfs", "-o", "size=1m", "none", folder]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run([program("umount"), folder], check=True)


@pytest.mark.cluster
def test_a_full_disk_is_named_and_leaves_what_was_there(small_disk, write, out):
    expected, answer = answers(n=1000)
    place = small_disk / out.name
    write(answer, place)
    model = fitted()
    model.save(small_disk / "model")
    before = {**contents(place), **contents(small_disk / "model")}
    _, large = answers(n=400_000, rows=50_000, dtype=np.float64)
    noise = large.map_blocks(lambda b: np.random.default_rng(0).normal(size=b.shape))
    said = f"no room left at {small_disk}.* Make some"
    with pytest.raises(StoreError, match=said) as caught:
        write(noise, place, overwrite=True, identity={"kind": "other"})
    assert f"Until then {place} stays as it is" in " ".join(caught.value.__notes__)
    with pytest.raises(StoreError, match=said):
        write(noise, small_disk / f"new-{out.name}")
    model.set_params(means_init=np.random.default_rng(0).normal(size=(400_000, 2)))
    with pytest.raises(StoreError, match=said):
        model.save(small_disk / "model", overwrite=True)
    with pytest.raises(OSError), open(small_disk / "filler", "wb", 0) as filler:
        while True:
            filler.write(bytes(1000))
    with pytest.raises(StoreError, match=said):
        fitted(checkpoint=small_disk / "c")
    assert before == {**contents(place), **contents(small_disk / "model")}
    assert np.array_equal(read(place), expected)


@pytest.mark.cluster
def test_a_disk_that_is_read_only(small_disk, write, out):
    model = fitted()
    model.save(small_disk / "model")
    remount = [program("mount"), "-o", "remount,ro", small_disk]
    subprocess.run(remount, check=True)
    said = f"{small_disk}.* cannot be used.*Choose another place"
    with pytest.raises(StoreError, match=said):
        write(answers()[1], small_disk / out.name)
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=said):
            model.save(
                small_disk / f"model{'' if overwrite else 2}", overwrite=overwrite
            )
    with pytest.raises(StoreError, match=said):
        fitted(checkpoint=small_disk / "c")
    np.testing.assert_array_equal(load(small_disk / "model").means_, model.means_)


# --- what would be wrong without a word -----------------------------------------------


def test_a_replacement_in_other_parts_is_not_gone_on_with(out, write):
    """Parts of another length, in an array of the old chunks, spoil each other."""
    expected, answer = answers()
    write(answer, out)
    other = {"overwrite": True, "identity": {"kind": "proba"}}
    interrupt(write, answer + 1, out, **other)
    assert write((answer + 2).rechunk(50), out, **other).n_found == 0
    assert len(parts(out)) == 20
    assert np.array_equal(read(out), expected + 2)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_a_chunk_that_is_lost_later_does_not_read_as_an_answer(tmp_path, dtype):
    """Zarr reads it as the fill value, without an error."""
    expected, answer = answers(dtype=dtype)
    write_zarr(answer + 1, tmp_path / "out.zarr")
    parts(tmp_path / "out.zarr")[4].unlink()
    found = read(tmp_path / "out.zarr")
    lost = found[400:500]
    assert (lost == -1).all() if dtype == np.int64 else np.isnan(lost).all()
    found[400:500] = expected[400:500] + 1
    assert np.array_equal(found, expected + 1)


@pytest.mark.parametrize("n", [1000, 10_000])
@pytest.mark.parametrize("nothing", [-1, np.nan])
def test_answers_that_are_all_nothing_are_written(tmp_path, nothing, n):
    """As of rows that are all left out; Zarr leaves chunks of the fill value out."""
    values = np.full(n, nothing)
    out = tmp_path / "out.zarr"
    assert write_zarr(da.from_array(values, chunks=100), out).n_found == 0
    assert inspect.standing(str(out)).complete
    np.testing.assert_array_equal(read(out), values)


def test_parts_in_two_columns_of_rows_that_were_changed_are_written_anew(tmp_path):
    """A part's place has a number for each axis, where an answer has two."""
    expected, answer = answers(width=2, dtype=np.float64)
    out, versions = tmp_path / "out.zarr", dict.fromkeys(range(0, 1000, 100), "old")
    interrupt(write_zarr, answer, out, versions=lambda first, _: versions[first])
    there = sorted(int(path.name) for path in out.glob("c/*") if any(path.iterdir()))
    first = 100 * there[0]
    versions[first] = "new"
    written = write_zarr(answer + 1, out, versions=lambda first, _: versions[first])
    assert written.n_found == len(there) - 1
    block = slice(first, first + 100)
    assert np.array_equal(read(out)[block], expected[block] + 1)


@pytest.mark.parametrize("n_parts", [1, 100_000, 100_001, 2_000_000])
def test_names_of_parquet_files_sort_as_their_rows_do(n_parts):
    """Readers take them in the order of their names."""
    place = parquet_output.ParquetPlace("out.parquet", {"files": n_parts})
    last = range(max(0, n_parts - 3), n_parts)
    names = [place.name(part) for part in sorted({0, n_parts // 11, *last})]
    assert names == sorted(names)


def test_a_parquet_file_that_is_cut_before_the_output_is_complete(tmp_path):
    expected, answer = answers()
    out = tmp_path / "out.parquet"

    def observer(done, of):
        if done == of:
            parts(out)[4].write_bytes(parts(out)[4].read_bytes()[:-7])

    with pytest.raises(StoreError, match=r"part-00004\.parquet.* is broken"):
        write_parquet(answer, out, observer=observer)
    assert described(out)["complete"] is False
    assert write_parquet(answer, out).n_found == 9
    assert np.array_equal(read(out), expected)


def test_a_shard_that_cannot_be_read_is_written_anew(tmp_path):
    """A shard holds more rows than a chunk, and is looked at as a whole."""
    expected, answer = answers(n=10_050)
    out = tmp_path / "out.zarr"
    interrupt(write_zarr, answer, out)
    shard = parts(out)[2]
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    n_parts = len(parts(out))
    assert write_zarr(answer, out).n_found == n_parts - 1
    assert np.array_equal(read(out), expected)
