"""Missing zarr chunks are filled and reported, damaged ones refused, layouts preserved."""

from __future__ import annotations

import errno
import functools
import http.server
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_model
from typer.testing import CliRunner
from zarr.codecs import numcodecs as zarr_numcodecs
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ZipStore

import dn_core
from dn_core import files
from dn_core.cli import app
from dn_core.errors import ImageFileError
from dn_core.files import ome_zarr_writer, zarr_chunks
from dn_core.files import tiff as files_tiff
from dn_core.files.zarr_blocks import BlockWriter
from dn_core.files.zarr_chunks import count_chunks

PIXELS = np.random.default_rng(0).normal(1000, 50, (50, 50)).astype(np.uint16)
STACK = np.random.default_rng(1).integers(1, 60000, (5, 50, 70)).astype(np.uint16)


def saved(path, pixels, axes=None, **options):
    """An OME-Zarr with one level, as others write it: chunks with only zeros are left out."""
    version = options.get("zarr_format", 3)
    group = zarr.create_group(path, zarr_format=version)
    options.setdefault("fill_value", 0)
    array = group.create_array(
        "0",
        shape=pixels.shape,
        dtype=pixels.dtype,
        **{k: v for k, v in options.items() if k != "zarr_format"},
    )
    array[...] = pixels
    describe(group, axes or "zyx"[-pixels.ndim :], ["0"])
    return path


def describe(group, axes, paths):
    datasets = [
        {
            "path": name,
            "coordinateTransformations": [
                {"type": "scale", "scale": [1] * (len(axes) - 2) + [2.0**level] * 2}
            ],
        }
        for level, name in enumerate(paths)
    ]
    multiscale = {"axes": [{"name": name, "type": "space"} for name in axes], "datasets": datasets}
    if group.metadata.zarr_format == 2:
        group.attrs["multiscales"] = [{**multiscale, "version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}


def notes(path, **options):
    with files.open_image(path, **options) as image:
        return image.notes


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


# Counting

LAYOUTS = {
    "v2 flat": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2 nested": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v3 nested": {},
    "v3 flat": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "v3 with keys of v2": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
}
KEYS = {
    "v2 flat": "1.3",
    "v2 nested": "1/3",
    "v3 nested": "c/1/3",
    "v3 flat": "c.1.3",
    "v3 with keys of v2": "1/3",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_chunks_are_the_fill_value_and_told(layout, tmp_path):
    path = saved(tmp_path / "a.zarr", PIXELS, chunks=(10, 10), fill_value=7, **LAYOUTS[layout])
    assert notes(path) == ()
    (path / "0" / KEYS[layout]).unlink()
    assert notes(path) == ("1 of 25 chunks (4%) are missing and were read as 7",)
    with pytest.warns(
        UserWarning, match=r"a\.zarr: 1 of 25 chunks \(4%\) are missing and were read as 7"
    ):
        image = files.read_image(path)
    assert image.missing == "1 of 25 chunks (4%) are missing and were read as 7"
    assert (image.pixels[10:20, 30:40] == 7).all()
    assert (
        np.delete(image.pixels, range(10, 20), axis=0) == np.delete(PIXELS, range(10, 20), axis=0)
    ).all()
    with pytest.raises(
        ImageFileError,
        match=r'a\.zarr lacks 1 of 25 chunks \(4%\).*read them as 7 with missing="fill"',
    ):
        files.read_image(path, missing="refuse")


@pytest.mark.parametrize("location", ["start", "end"])
def test_a_lost_shard_counts_with_its_chunks_inside_the_image(location, tmp_path):
    path = saved(
        tmp_path / "a.zarr",
        PIXELS,
        chunks=(10, 10),
        shards={"shape": (40, 40), "index_location": location},
    )
    assert notes(path) == ()
    (path / "0" / "c" / "0" / "1").unlink()  # 4 x 4 chunks, 4 x 1 of them inside
    assert notes(path) == ("4 of 25 chunks (16%) are missing and were read as 0",)
    with pytest.raises(ImageFileError, match="lacks 4 of 25 chunks"):
        files.read_image(path, missing="refuse")
    (path / "0" / "c" / "1" / "1").unlink()
    assert notes(path)[0].startswith("5 of 25 chunks (20%)")


def test_chunks_that_a_shard_lacks_are_counted(tmp_path):
    pixels = PIXELS.copy()
    pixels[:20, :30] = 0
    pixels[45:, 45:] = 0
    path = saved(tmp_path / "a.zarr", pixels, chunks=(10, 10), shards=(40, 40))
    assert notes(path) == ("6 of 25 chunks (24%) are missing and were read as 0",)
    with pytest.warns(UserWarning, match="6 of 25"):
        assert (files.read_image(path).pixels == pixels).all()


@pytest.mark.parametrize("shards", [None, (4, 40, 40)])
def test_only_files_that_are_chunks_count(shards, tmp_path):
    path = saved(tmp_path / "a.zarr", STACK, chunks=(2, 20, 20), shards=shards)
    folder = path / "0" / "c"
    first, second = sorted(file for file in folder.rglob("*") if file.is_file())[:2]
    for name in (
        "9/0/0",
        "0/0/01",
        "0/0/x",
        "0/0/.0.partial",
    ):  # beyond the image, or no name of a chunk
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(first, folder / name)
    assert notes(path) == ()
    first.unlink()
    first.symlink_to(tmp_path / "not fetched")
    second.unlink()
    second.mkdir()
    lost = 2 if shards is None else 2 * 2 * 2 + 2 * 2 * 2
    assert notes(path)[0].startswith(f"{lost} of 36 chunks")


def test_the_share_of_what_is_missing_is_never_rounded_to_nothing_or_all(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(20, 20), chunks=(1, 1), dtype="f4", fill_value=np.nan
    )
    assert notes(tmp_path / "a.zarr") == (
        "400 of 400 chunks (100%) are missing and were read as nan",
    )
    array[0, 0] = 1
    assert notes(tmp_path / "a.zarr") == (
        "399 of 400 chunks (over 99%) are missing and were read as nan",
    )
    array[...] = 1
    shutil.rmtree(tmp_path / "a.zarr" / "c" / "7" / "7", ignore_errors=True)
    (tmp_path / "a.zarr" / "c" / "7" / "7").unlink()
    assert notes(tmp_path / "a.zarr") == (
        "1 of 400 chunks (under 1%) are missing and were read as nan",
    )


class CountingStore(MemoryStore):
    """A store that notes what it is asked."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked, self.written = [], []

    async def get(self, key, *arguments, **options):
        self.asked.append(key)
        return await super().get(key, *arguments, **options)

    async def exists(self, key):
        self.asked.append(key)
        return await super().exists(key)

    async def set(self, key, value, *arguments):
        self.written.append(key)
        await super().set(key, value, *arguments)


def test_counting_lists_the_store_and_reads_no_chunk():
    store = CountingStore()
    array = zarr.create_array(
        store, name="x", shape=(2**25, 2**25), chunks=(1, 1), dtype="u1"
    )  # 10^15 chunks
    array[5, 7] = 1
    store.asked.clear()
    count = count_chunks(array, "x")
    assert (count.missing, count.total) == (2**50 - 1, 2**50)
    assert not store.asked


def test_of_shards_the_indexes_are_read_and_no_more():
    store = CountingStore()
    array = zarr.create_array(store, shape=(64, 64), chunks=(4, 4), shards=(16, 16), dtype="u2")
    array[:16, :16] = array[16:20, 20:24] = 1
    store.asked.clear()
    assert count_chunks(array, "x").missing == 256 - 17
    assert sorted(store.asked) == ["c/0/0", "c/1/1"]


@pytest.fixture
def served(tmp_path):
    """Files over HTTP from a server that lists no folders."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def list_directory(self, path):
            self.send_error(403)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def in_a_zip_file(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
                if file.name == "1":
                    with pytest.warns(UserWarning, match="Duplicate name"):
                        archive.write(file, file.relative_to(folder).as_posix())
    return ZipStore(target, mode="r")


def in_memory(folder, _):
    prototype = zarr.core.buffer.default_buffer_prototype().buffer
    found = [file for file in folder.rglob("*") if file.is_file()]
    return MemoryStore(
        {
            file.relative_to(folder).as_posix(): prototype.from_bytes(file.read_bytes())
            for file in found
        }
    )


STORES = {
    "local": lambda folder, _: LocalStore(folder, read_only=True),
    "memory": in_memory,
    "zip": in_a_zip_file,
    "fsspec": lambda folder, _: FsspecStore.from_url(f"file://{folder}", read_only=True),
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("shards", [None, (20, 40)])
def test_every_store_is_counted_the_same(store, shards, tmp_path):
    path = saved(tmp_path / "a.zarr", PIXELS, chunks=(10, 10), shards=shards)
    (path / "0" / "c" / "1" / "0").unlink()
    (path / "00").mkdir()
    shutil.copytree(path / "0" / "c", path / "00" / "c")  # a name that begins alike
    array = zarr.open_array(STORES[store](path, tmp_path / "a.zip"), path="0", mode="r")
    assert count_chunks(array, "a").missing == (1 if shards is None else 8)


def test_where_a_server_lists_nothing_each_chunk_is_asked_for(served, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    path = saved(tmp_path / "a.zarr", PIXELS, chunks=(10, 10))
    (path / "0" / "c" / "1" / "0").unlink()
    array = zarr.open_array(
        FsspecStore.from_url(f"{served}/a.zarr", read_only=True), path="0", mode="r"
    )
    assert count_chunks(array, "a").in_words == "1 of 25 chunks (4%) are missing and were read as 0"
    monkeypatch.setattr(zarr_chunks, "MAX_ASKED", 24)
    assert "not known, since its store cannot be listed" in count_chunks(array, "a").in_words


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec:UserWarning")
@pytest.mark.parametrize("kind", ["shards of shards", "transposed shards", "compressed shards"])
def test_shards_that_cannot_be_looked_into_are_told(kind, tmp_path):
    inner = zarr.codecs.ShardingCodec(chunk_shape=(5, 5))
    options = {
        "shards of shards": {"shards": (50, 50)},
        "transposed shards": {"filters": zarr.codecs.TransposeCodec(order=(1, 0))},
        "compressed shards": {"compressors": zarr.codecs.GzipCodec()},
    }
    path = saved(
        tmp_path / "a.zarr",
        PIXELS,
        chunks=(10, 10),
        serializer=inner,
        **{"compressors": None, **options[kind]},
    )
    assert notes(path) == (
        "whether chunks are missing is not known, since its shards cannot be inspected; missing "
        "ones would be read as 0",
    )
    with pytest.raises(ImageFileError, match="not known"):
        files.read_image(path, missing="refuse")


# Damage is not missing


def flipped(content):
    changed = bytearray(content)
    changed[-8] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("location", "damage"),
    [
        ("end", lambda content: b""),
        ("end", lambda content: content[: len(content) // 2]),
        ("end", flipped),
        ("start", lambda content: b""),
        ("start", lambda content: content[: len(content) // 2]),
        ("start", lambda content: content[:50]),
    ],
)
@pytest.mark.parametrize("store", ["local", "memory"])
def test_a_damaged_shard_is_refused_by_name(location, damage, store, tmp_path):
    path = saved(
        tmp_path / "a.zarr",
        PIXELS,
        chunks=(10, 10),
        shards={"shape": (40, 40), "index_location": location},
    )
    shard = path / "0" / "c" / "0" / "1"
    shard.write_bytes(damage(shard.read_bytes()))
    array = zarr.open_array(STORES[store](path, None), path="0", mode="r")
    with pytest.raises(ImageFileError, match=r"index of its shard c/0/1 cannot be read"):
        dn_core.denoise(array, small_model())
    for missing in (None, "fill", "refuse"):
        with pytest.raises(ImageFileError, match=r"a\.zarr is damaged.*c/0/1"):
            files.read_image(path, missing=missing)


@pytest.mark.parametrize("shards", [None, (20, 20)])
def test_a_damaged_chunk_is_refused_by_name(shards, tmp_path):
    path = saved(tmp_path / "a.zarr", PIXELS, chunks=(10, 10), shards=shards)
    chunk = path / "0" / "c" / ("1" if shards else "2") / "1"
    content = bytearray(chunk.read_bytes())
    content[:20] = bytes(20)
    chunk.write_bytes(content)
    name = r"chunk \(2, 2\) in shard c/1/1" if shards else r"chunk c/2/1"
    with pytest.raises(ImageFileError, match=rf"{name} of .*a\.zarr is damaged"):
        files.read_image(path)
    with files.open_image(path) as image, pytest.raises(ImageFileError, match=name):
        image.source[-30:, 25 if shards else 15]
    with pytest.raises(ImageFileError, match=name):
        dn_core.denoise(zarr.open_array(path / "0", mode="r"), small_model())


def test_what_cannot_be_read_for_another_reason_is_no_missing_chunk():
    class Failing(MemoryStore):
        failing = False

        async def get(self, key, *arguments, **options):
            if self.failing and key == "c/0/1":
                raise OSError(errno.EIO, "Input/output error", key)
            return await super().get(key, *arguments, **options)

    for shards in (None, (20, 20)):
        array = zarr.create_array(
            Failing(), shape=(40, 40), chunks=(10, 10), shards=shards, dtype="u2"
        )
        array[...] = 1
        array.store.failing = True
        with pytest.raises(OSError, match="Input/output") as caught:
            dn_core.denoise(array, small_model())
        assert caught.value.errno == errno.EIO


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
def test_a_folder_or_chunk_that_may_not_be_read_is_no_missing_one():
    code = (
        "import os, sys\n"
        "from dn_core import files\n"
        "files.read_image(sys.argv[2])\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: files.read_image(sys.argv[1])\n"
        "except PermissionError as error: print('refused', error.filename)"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o755)
        path = saved(Path(folder, "a.zarr"), PIXELS, chunks=(10, 10))
        other = shutil.copytree(path, Path(folder, "b.zarr"))
        for locked in (path / "0" / "c" / "1", path / "0" / "c" / "2" / "3"):
            mode = locked.stat().st_mode
            locked.chmod(0)
            done = subprocess.run(
                [sys.executable, "-c", code, path, other],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            locked.chmod(mode)
            assert done.stdout == f"refused {locked}\n", done.stderr


# Telling


@pytest.mark.parametrize("shards", [None, (40, 40)])
def test_denoising_an_array_warns_of_missing_chunks(shards):
    pixels = PIXELS.copy()
    pixels[:10, :20] = 0
    array = zarr.create_array({}, shape=pixels.shape, chunks=(10, 10), shards=shards, dtype="u2")
    array[...] = pixels
    with pytest.warns(
        UserWarning, match=r"2 of 25 chunks \(8%\) are missing and were read as 0"
    ) as caught:
        result = dn_core.denoise(array, small_model())
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(result[...], dn_core.denoise(pixels, small_model()))


def test_the_command_tells_what_is_missing_and_refuses_it_when_asked(tmp_path):
    path = saved(tmp_path / "in.zarr", PIXELS, chunks=(10, 10), shards=(40, 40))
    (path / "0" / "c" / "0" / "1").unlink()
    refused = invoke("denoise", path, "-o", tmp_path / "out.zarr", "--missing", "refuse")
    assert refused.exit_code == 1
    assert "lacks 4 of 25 chunks (16%)" in refused.stderr
    assert "--missing fill" in refused.stderr
    assert not (tmp_path / "out.zarr").exists()
    done = invoke("denoise", path, "-o", tmp_path / "out.zarr")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines() == [
        "in.zarr: 4 of 25 chunks (16%) are missing and were read as 0"
    ]
    filled = PIXELS.copy()
    filled[:40, 40:] = 0
    out = files.read_image(tmp_path / "out.zarr", missing="refuse")  # all chunks are written
    np.testing.assert_array_equal(out.pixels, dn_core.denoise(filled))
    assert zarr.open_array(tmp_path / "out.zarr" / "0", mode="r").shards == (40, 40)


# The layout is kept

V3 = {
    "plain": {"compressors": None},
    "zstd": {"compressors": zarr.codecs.ZstdCodec(level=7, checksum=True)},
    "gzip": {"compressors": zarr.codecs.GzipCodec(level=2)},
    "blosc": {
        "compressors": zarr.codecs.BloscCodec(
            cname="lz4", clevel=3, shuffle="bitshuffle", typesize=2
        )
    },
    "crc32c": {"compressors": [zarr.codecs.GzipCodec(level=1), zarr.codecs.Crc32cCodec()]},
    "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "transposed": {"filters": zarr.codecs.TransposeCodec(order=(2, 0, 1))},
    "flat keys": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "fill value": {"fill_value": 7},
    "shards": {"shards": (4, 40, 60)},
    "shards, index first": {
        "shards": {"shape": (2, 100, 100), "index_location": "start"},
        "chunks": (1, 50, 50),
    },
    "shards of transposed chunks": {
        "shards": (4, 40, 60),
        "filters": zarr.codecs.TransposeCodec(order=(2, 0, 1)),
    },
    "one chunk larger than the image": {"chunks": (64, 64, 128)},
}
V2 = {
    "plain": {"compressors": None},
    "zstd": {"compressors": numcodecs.Zstd(level=7, checksum=True)},
    "blosc": {"compressors": numcodecs.Blosc(cname="zstd", clevel=3, shuffle=2)},
    "lz4": {"compressors": numcodecs.LZ4(acceleration=3)},
    "zlib, filters": {
        "compressors": numcodecs.Zlib(level=2),
        "filters": [numcodecs.Delta(dtype="u2"), numcodecs.Shuffle(elementsize=2)],
    },
    "Fortran order": {"order": "F"},
    "flat keys": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "fill value": {"fill_value": 7},
}


def rewritten(path, target):
    with files.open_image(path) as image, files.create_image(target, image) as out:
        for z in range(image.shape[0]):
            for y in range(0, image.shape[1], 13):  # rows across chunks
                out[z, y : y + 13] = image.source[z, y : y + 13]
    return target


def document(path, level="0"):
    name = next(name for name in ("zarr.json", ".zarray") if (path / level / name).exists())
    return json.loads((path / level / name).read_text())


def without_checksums(text):
    return re.sub(r'"checksum": (true|false),? ?', "", json.dumps(text, sort_keys=True))


@pytest.mark.parametrize(
    ("version", "layout"), [*((3, name) for name in V3), *((2, name) for name in V2)]
)
def test_the_layout_of_the_input_is_kept(version, layout, tmp_path):
    if version == 3:
        general = {
            "dimension_names": ["z", "y", "x"],
            "compressors": zarr.codecs.ZstdCodec(level=1, checksum=True),
        }
    else:
        general = {"compressors": numcodecs.Zstd(level=1, checksum=True)}
    options = {
        "chunks": (2, 20, 20),
        "zarr_format": version,
        **general,
        **{2: V2, 3: V3}[version][layout],
    }
    path = saved(tmp_path / "a.zarr", STACK, **options)
    out = rewritten(path, tmp_path / "b.zarr")
    assert document(out) == document(path)
    assert (files.read_image(out, missing="refuse").pixels == STACK).all()
    assert (zarr.open_array(out / "0", mode="r")[...] == STACK).all()


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:UserWarning")
@pytest.mark.parametrize("version", [2, 3])
def test_an_array_that_only_its_group_describes_is_kept_too(version, tmp_path):
    options = {"shards": (4, 40, 40), "dimension_names": ["z", "y", "x"]} if version == 3 else {}
    codec = zarr.codecs.GzipCodec(level=2) if version == 3 else numcodecs.GZip(level=2)
    path = saved(
        tmp_path / "a.zarr",
        STACK,
        chunks=(2, 20, 20),
        zarr_format=version,
        compressors=codec,
        **options,
    )
    zarr.consolidate_metadata(path, zarr_format=version)
    described = document(path)
    (path / "0" / ("zarr.json" if version == 3 else ".zarray")).unlink()
    out = rewritten(path, tmp_path / "b.zarr")
    assert document(out) == described
    assert (files.read_image(out, missing="refuse").pixels == STACK).all()


def test_the_byte_order_of_version_2_is_kept(tmp_path):
    path = saved(tmp_path / "a.zarr", STACK.astype(">u2"), chunks=(2, 20, 20), zarr_format=2)
    out = rewritten(path, tmp_path / "b.zarr")
    assert document(out)["dtype"] == ">u2"
    assert (files.read_image(out).pixels == STACK).all()


@pytest.mark.parametrize("version", [2, 3])
def test_zstd_gets_a_checksum(version, tmp_path):
    options = {} if version == 2 else {"dimension_names": ["z", "y", "x"], "shards": (4, 40, 40)}
    codec = numcodecs.Zstd(level=1) if version == 2 else zarr.codecs.ZstdCodec(level=1)
    path = saved(
        tmp_path / "a.zarr",
        STACK,
        chunks=(2, 20, 20),
        zarr_format=version,
        compressors=codec,
        **options,
    )
    out = rewritten(path, tmp_path / "b.zarr")
    assert '"checksum": true' in json.dumps(document(out))
    assert '"checksum": true' not in json.dumps(document(path))
    assert without_checksums(document(out)) == without_checksums(document(path))


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3:UserWarning")
@pytest.mark.parametrize(("version", "shards"), [(2, None), (3, None), (3, (4, 40, 40))])
def test_a_codec_that_loses_digits_is_replaced_and_told(version, shards, tmp_path):
    filters = (
        [numcodecs.BitRound(keepbits=3)] if version == 2 else [zarr_numcodecs.BitRound(keepbits=3)]
    )
    options = {"chunks": (2, 20, 20), "shards": shards, "filters": filters, "zarr_format": version}
    path = saved(tmp_path / "a.zarr", STACK.astype(np.float32), **options)
    with pytest.warns(
        UserWarning,
        match=r"codecs (numcodecs\.)?bitround of .*a\.zarr are lossy.*zstd replaces them",
    ):
        out = rewritten(path, tmp_path / "b.zarr")
    assert (files.read_image(out).pixels == files.read_image(path).pixels).all()
    assert "bitround" not in json.dumps(document(out))
    assert '"checksum": true' in json.dumps(document(out))
    assert zarr.open_array(out / "0", mode="r").shards == shards


@pytest.mark.parametrize(
    ("codec", "dtype", "kept"),
    [
        (numcodecs.Delta(dtype="i4"), "i4", True),
        (numcodecs.Delta(dtype="i4", astype="i2"), "i4", False),
        (numcodecs.Delta(dtype="f4"), "f4", False),
        (numcodecs.FixedScaleOffset(offset=0, scale=10, dtype="f4", astype="u2"), "f4", False),
        (numcodecs.PackBits(), "?", True),
    ],
)
def test_a_filter_is_kept_where_it_gives_back_all_values(codec, dtype, kept, tmp_path):
    path = saved(
        tmp_path / "a.zarr",
        (STACK % 2).astype(dtype),
        chunks=(2, 20, 20),
        zarr_format=2,
        filters=[codec],
    )
    layout = layout_of(path)
    assert (layout.dropped == ()) == kept
    assert (layout.document["filters"] == document(path)["filters"]) == kept


def layout_of(path):
    with files.open_image(path) as image:
        return image.metadata["layouts"]["0"]


def pyramid(path, shapes, **options):
    group = zarr.create_group(path)
    for level, (shape, shards) in enumerate(shapes):
        array = group.create_array(
            f"s{level}", shape=shape, dtype="u2", chunks=(1, 10, 10), shards=shards, **options
        )
        array[...] = np.arange(math.prod(shape)).reshape(shape) % 60000 + 1
    describe(group, "zyx", [f"s{level}" for level in range(len(shapes))])
    return path


def test_the_levels_of_a_pyramid_keep_their_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(ome_zarr_writer, "BAND_BYTES", 1)  # many parts
    shapes = [((5, 50, 71), (4, 40, 40)), ((5, 25, 36), (2, 20, 20)), ((5, 12, 18), None)]
    path = pyramid(tmp_path / "a.zarr", shapes, compressors=zarr.codecs.BloscCodec(typesize=2))
    out = rewritten(path, tmp_path / "b.zarr")
    with files.open_image(path) as image:
        whole = image.pixels
    for level in ("s0", "s1", "s2"):
        assert document(out, level) == {**document(path, level), "dimension_names": ["z", "y", "x"]}
    first, second = (
        files.read_image(out / level, missing="refuse").pixels for level in ("s1", "s2")
    )
    padded = np.pad(whole.astype(float), ((0, 0), (0, 0), (0, 1)), mode="edge")
    np.testing.assert_array_equal(first, np.rint(padded.reshape(5, 25, 2, 36, 2).mean((2, 4))))
    np.testing.assert_array_equal(
        second, np.rint(first[:, :24].astype(float).reshape(5, 12, 2, 18, 2).mean((2, 4)))
    )


def test_a_level_that_is_missing_is_told(tmp_path):
    path = pyramid(
        tmp_path / "a.zarr", [((5, 50, 70), None), ((5, 25, 35), None), ((5, 12, 17), None)]
    )
    shutil.rmtree(path / "s1")
    assert notes(path)[-1] == "levels of the pyramid are missing (s1); an output will not have them"
    out = rewritten(path, tmp_path / "b.zarr")
    assert files.read_image(out).metadata["levels"] == [("s0", (5, 50, 70)), ("s2", (5, 12, 17))]
    shutil.rmtree(path / "s0")
    with pytest.raises(ImageFileError, match="lacks level 's0'"):
        files.read_image(path)


@pytest.mark.parametrize("filters", [None, zarr.codecs.TransposeCodec(order=(3, 1, 0, 2))])
def test_a_bare_array_keeps_its_shards_also_when_its_axes_are_put_in_order(filters, tmp_path):
    pixels = STACK[:4].reshape(2, 2, 50, 70)
    path = tmp_path / "a.zarr"
    options = {
        "chunks": (2, 1, 10, 20),
        "shards": (2, 2, 20, 40),
        "filters": filters,
        "attributes": {"stain": "H&E"},
    }
    array = zarr.create_array(
        path, shape=pixels.shape, dtype="u2", dimension_names=["z", "t", "y", "x"], **options
    )
    array[...] = pixels
    with files.open_image(path) as image, files.create_image(tmp_path / "b.zarr", image) as target:
        assert image.axes == "ZTYX"
        target[:, 1] = pixels[:, 1]
        target[:, 0] = pixels[:, 0]
    out = zarr.open_array(tmp_path / "b.zarr" / "0", mode="r")
    assert (out.shards, out.chunks) == ((2, 2, 20, 40), (1, 2, 10, 20))
    assert out.metadata.dimension_names == ("t", "z", "y", "x")
    assert dict(out.attrs) == {"stain": "H&E"}
    assert (out[...] == pixels.transpose(1, 0, 2, 3)).all()
    if filters:
        inner = document(tmp_path / "b.zarr")["codecs"][0]["configuration"]["codecs"][0]
        assert inner == {
            "name": "transpose",
            "configuration": {"order": [3, 0, 1, 2]},
        }  # x, t, z, y as before


def test_a_tiff_becomes_chunks_without_shards(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack")
    out = zarr.open_array(rewritten(tmp_path / "a.tif", tmp_path / "b.zarr") / "0", mode="r")
    assert (out.shards, out.chunks) == (None, (1, 50, 70))
    assert (out[...] == STACK).all()


# Writing


@st.composite
def writings(draw):
    """A shape, chunks, shards, and blocks in any order, some of which lie over each other."""
    ndim = draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(1, 13)) for _ in range(ndim))
    chunks = tuple(draw(st.integers(1, 5)) for _ in range(ndim))
    shards = draw(st.none() | st.just(tuple(chunk * draw(st.integers(1, 3)) for chunk in chunks)))
    index = st.tuples(
        *(
            st.integers(0, size - 1)
            | st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted)
            for size in shape
        )
    )
    return shape, chunks, shards, draw(st.lists(index, max_size=12))


@given(writings())
@settings(max_examples=30)
def test_blocks_in_any_order_give_what_numpy_gives(writing):
    shape, chunks, shards, indexes = writing
    expected = np.full(shape, 7, ">u2")
    array = zarr.create_array(
        {}, shape=shape, chunks=chunks, shards=shards, dtype="u2", fill_value=7
    )
    writer = BlockWriter(array)
    for number, index in enumerate(indexes):
        where = tuple(slice(*item) if isinstance(item, list) else item for item in index)
        block = np.arange(expected[where].size).reshape(expected[where].shape) + 100 * number
        expected[where] = block
        writer[where] = block
        if number == 5:
            np.testing.assert_array_equal(writer[...], expected)
    writer[::2, ..., -1] = expected[::2, ..., -1] = 3
    writer.flush()
    writer.close()
    np.testing.assert_array_equal(array[...], expected)


@pytest.mark.parametrize(
    ("chunks", "shards"), [((1, 8, 8), (4, 32, 32)), ((4, 32, 32), None), ((1, 16, 16), None)]
)
def test_every_shard_or_chunk_is_written_once(chunks, shards, tmp_path):
    pixels = np.random.default_rng(3).integers(1, 999, (6, 70, 90)).astype("u2")
    store = CountingStore()
    array = zarr.create_array(store, shape=pixels.shape, chunks=chunks, shards=shards, dtype="u2")
    store.written.clear()
    writer = BlockWriter(array, tmp_path)
    for z in range(6):
        for y in range(0, 70, 13):
            for x in range(0, 90, 13):
                writer[z, y : y + 13, x : x + 13] = pixels[z, y : y + 13, x : x + 13]
    assert len(store.written) == math.prod(
        -(-size // unit) for size, unit in zip(pixels.shape, shards or chunks, strict=True)
    )
    assert len(set(store.written)) == len(store.written)
    writer.close()
    assert (array[...] == pixels).all()


def test_a_sharded_array_given_as_out_is_written_once_a_shard():
    store = CountingStore()
    out = zarr.create_array(
        store, shape=STACK.shape, chunks=(1, 10, 10), shards=(5, 40, 40), dtype="u2"
    )
    store.written.clear()
    assert dn_core.denoise(STACK, small_model(), tile_size=16, out=out) is out
    assert sorted(store.written) == ["c/0/0/0", "c/0/0/1", "c/0/1/0", "c/0/1/1"]
    np.testing.assert_array_equal(out[...], dn_core.denoise(STACK, small_model()))


@pytest.mark.parametrize("version", [2, 3])
def test_the_result_for_an_array_has_its_layout(version):
    if version == 2:
        options = {
            "compressors": numcodecs.Zlib(level=2),
            "filters": [numcodecs.Shuffle(elementsize=2)],
        }
    else:
        options = {
            "compressors": zarr.codecs.GzipCodec(level=2),
            "shards": (4, 40, 40),
            "dimension_names": ["z", "y", "x"],
        }
    options |= {
        "chunks": (2, 20, 20),
        "fill_value": 3,
        "attributes": {"stain": "H&E"},
        "zarr_format": version,
    }
    array = zarr.create_array({}, shape=STACK.shape, dtype="u2", **options)
    array[...] = STACK
    result = dn_core.denoise(array, small_model())
    assert result.metadata == array.metadata
    assert result.store_path != array.store_path
    np.testing.assert_array_equal(result[...], dn_core.denoise(STACK, small_model()))
    assert not count_chunks(result, "result").missing


def test_what_was_begun_and_not_finished_leaves_nothing(tmp_path):
    path = saved(tmp_path / "a.zarr", STACK, chunks=(1, 10, 10), shards=(5, 40, 40))
    with files.open_image(path) as image:
        writing = files.create_image(tmp_path / "b.zarr", image)
        writing.__enter__()[0, :7] = 1
        assert not writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zarr"]


# Sparse TIFF


def sparse_tiff(path, absent, pages=1, **options):
    """A tiled TIFF whose tiles `absent` have neither place nor bytes, as GDAL writes them."""
    pixels = np.random.default_rng(4).integers(1, 999, (pages, 64, 96)).astype("u2")
    tiles = [
        (page, y, x) for page in range(pages) for y in range(0, 64, 32) for x in range(0, 96, 32)
    ]
    data = (pixels[page, y : y + 32, x : x + 32] for page, y, x in tiles)
    tifffile.imwrite(
        path,
        data,
        shape=pixels.shape,
        dtype="u2",
        tile=(32, 32),
        photometric="minisblack",
        **options,
    )
    with tifffile.TiffFile(path) as tif:
        byteorder, places = (
            tif.byteorder,
            [(page.tags[324].valueoffset, page.tags[325].valueoffset) for page in tif.pages],
        )
        kinds = [(page.tags[324].dtype, page.tags[325].dtype) for page in tif.pages]
    content = bytearray(path.read_bytes())
    for number in absent:
        page, tile = divmod(number, 6)
        for place, kind in zip(places[page], kinds[page], strict=True):
            width = {3: 2, 4: 4}[int(kind)]
            content[place + width * tile : place + width * (tile + 1)] = bytes(width)
        _, y, x = tiles[number]
        pixels[page, y : y + 32, x : x + 32] = 0
    assert byteorder == "<"
    path.write_bytes(content)
    return path, pixels


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
@pytest.mark.parametrize("eager", [True, False])
def test_tiles_that_a_sparse_tiff_leaves_out_are_read_as_zero_and_told(
    options, eager, tmp_path, monkeypatch
):
    if not eager:
        monkeypatch.setattr(files_tiff, "EAGER_BYTES", 0)
    path, pixels = sparse_tiff(tmp_path / "a.tif", [1, 8], pages=2, **options)
    assert notes(path) == ("2 of 12 tiles (17%) are missing and were read as 0",)
    with pytest.warns(UserWarning, match=r"a\.tif: 2 of 12 tiles \(17%\)"):
        np.testing.assert_array_equal(files.read_image(path).pixels.reshape(pixels.shape), pixels)
    with pytest.raises(ImageFileError, match=r'lacks 2 of 12 tiles \(17%\).*missing="fill"'):
        files.read_image(path, missing="refuse")


def test_missing_tiles_are_read_as_the_value_that_gdal_names(tmp_path):
    path, _ = sparse_tiff(tmp_path / "a.tif", [3], extratags=[(42113, "s", 0, "5", True)])
    with pytest.warns(UserWarning, match="1 of 6 tiles .* were read as 5"):
        assert (files.read_image(path).pixels[32:, :32] == 5).all()


def test_a_tiff_without_any_tile_was_never_finished(tmp_path):
    path, _ = sparse_tiff(tmp_path / "a.tif", range(6))
    with pytest.raises(ImageFileError, match="6 of 6 tiles .*never finished"):
        files.read_image(path)
    with pytest.warns(UserWarning, match="6 of 6 tiles"):
        assert not files.read_image(path, missing="fill").pixels.any()
