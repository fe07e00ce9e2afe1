"""Remote drives, killed writers, shrinking inputs: a correct file, or an error and no remains."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dn_core import files, safe_write
from dn_core.errors import ImageFileError
from dn_core.files.raw_array import open_npy, open_raw
from dn_core.inference.denoise import denoise_steps
from dn_core.locks import locked
from dn_core.training.data import user_images

posix = pytest.mark.skipif(os.name == "nt", reason="as on POSIX")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as on Linux")
STACK = np.random.default_rng(0).integers(0, 4000, (6, 48, 40)).astype(np.uint16)
ENDINGS = [".tif", ".ome.tif", ".png", ".zarr"]


def like(pixels):
    return files.ImageFile(Path("memory"), pixels, "YX".rjust(pixels.ndim, "Q"), "tiff")


def save(path, pixels=STACK[0]):
    with files.create_image(path, like(pixels), overwrite=True) as target:
        target[...] = pixels
    return path


def run_child(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


# An array in a file


def random_index(rng, shape):
    index = []
    for extent in shape[: rng.integers(len(shape) + 1)]:
        if rng.random() < 0.4:
            index.append(int(rng.integers(-extent, extent)))
        else:
            start, stop = (
                None if rng.random() < 0.3 else int(rng.integers(-extent - 2, extent + 3))
                for _ in range(2)
            )
            index.append(slice(start, stop, [None, 1, 2, 3, -1, -2][rng.integers(6)]))
    return (*index, ...) if rng.random() < 0.3 else tuple(index)


@pytest.mark.parametrize("fortran_order", [False, True])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "<f4"])
def test_a_raw_array_reads_and_writes_as_numpy_does(dtype, fortran_order, tmp_path):
    rng, path = np.random.default_rng(1), tmp_path / "a.bin"
    for trial in range(150):
        shape = tuple(rng.integers(1, 7, rng.integers(1, 5)))
        shape = (*shape, 3000) if trial % 10 == 0 else shape  # too far apart to be read at once
        expected = rng.integers(0, 250, shape).astype(dtype)
        path.write_bytes(bytes(7) + expected.tobytes("F" if fortran_order else "C"))
        array = open_raw(path, dtype, shape, 7, writable=True, fortran_order=fortran_order)
        if trial % 3 == 0:
            expected, array = expected.T, array.T
        index = random_index(rng, expected.shape)
        np.testing.assert_array_equal(array[index], np.asarray(expected[index], dtype), strict=True)
        np.testing.assert_array_equal(np.asarray(array.view(index)), expected[index])
        expected[index] = array[index] = rng.integers(0, 250, expected[index].shape)
        np.testing.assert_array_equal(array[...], expected)
        array.close()


def test_indices_beyond_a_raw_array_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", STACK)
    array = open_npy(tmp_path / "a.npy")
    for index in (6, -7, (0, 48), (0, 0, 0, 0)):
        with pytest.raises(IndexError):
            array[index]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_are_read_in_either_order(order, tmp_path):
    np.save(tmp_path / "a.npy", np.asarray(STACK, order=order))
    np.testing.assert_array_equal(np.asarray(open_npy(tmp_path / "a.npy")), STACK)


# Drives that refuse shared maps

NO_MAPS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/types.h>
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
    if (file >= 0 && (flags & MAP_SHARED)) { errno = ENODEV; return MAP_FAILED; }
    return real(at, size, protection, flags, file, offset);
}
void *mmap64(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return mmap(at, size, protection, flags, file, offset);
}
"""


@linux
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
def test_no_file_is_mapped(tmp_path):
    (tmp_path / "no_maps.c").write_text(NO_MAPS)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", tmp_path / "no_maps.so", tmp_path / "no_maps.c", "-ldl"],
        check=True,
    )
    save(tmp_path / "a.tif", STACK)
    for name in ("noisy", "clean"):
        np.save(
            tmp_path / f"{name}.npy",
            np.random.default_rng(2).normal(1000, 100, (128, 128)) + 500 * np.eye(128),
        )
    code = (
        "import mmap, os, sys, numpy as np; from dn_core import files\n"
        "from dn_core.training.data import user_images\n"
        "os.chdir(sys.argv[1])\n"
        "try: np.load('noisy.npy', mmap_mode='r')\n"
        "except OSError as error: print('refused', error.errno)\n"
        "with files.open_image('a.tif') as image, files.create_image('b.tif', image) as target:\n"
        "    for plane in range(6): target[plane] = image.source[plane]\n"
        "print((files.read_image('b.tif').pixels == files.read_image('a.tif').pixels).all())\n"
        "np.save('clean.npy', np.load('noisy.npy') + 1)\n"
        "print(user_images.pairs('noisy.npy', 'clean.npy').kind)\n"
    )
    done = run_child(code, tmp_path, env={**os.environ, "LD_PRELOAD": str(tmp_path / "no_maps.so")})
    assert done.stdout == f"refused {errno.ENODEV}\nTrue\npairs\n", done.stderr


# Drives that cannot flush


@pytest.fixture
def flushing(monkeypatch):
    """Have the system refuse to flush folders or files."""

    def refuse(number, *, folders):
        def fsync(descriptor, real=os.fsync):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return refuse


@pytest.mark.parametrize("folders", [True, False])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_what_cannot_be_flushed_is_written_all_the_same(
    ending, number, folders, tmp_path, flushing
):
    flushing(number, folders=folders)
    assert (files.read_image(save(tmp_path / f"a{ending}")).pixels == STACK[0]).all()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_data_that_are_lost_while_flushing_are_an_error_that_names_the_output(
    ending, number, tmp_path, flushing
):
    path = save(tmp_path / f"a{ending}")
    flushing(number, folders=False)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        save(path, STACK[1])
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert os.listdir(tmp_path) == [path.name]
    assert (files.read_image(path).pixels == STACK[0]).all()


@posix
def test_a_folder_that_can_be_written_to_and_not_read_takes_a_file():
    code = (
        "import os, sys; from pathlib import Path; from dn_core.safe_write import atomic_write\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "with atomic_write(Path('drop/a.txt')) as temporary: temporary.write_text('whole')\n"
        "print(Path('drop/a.txt').read_text())\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o755)
        Path(folder, "drop").mkdir()
        Path(folder, "drop").chmod(0o333)
        done = run_child(code, cwd=folder)
    assert done.stdout == "whole\n", done.stderr


def test_a_drive_that_does_not_tell_its_room_is_taken_at_its_word(tmp_path, monkeypatch):
    """The default of FUSE: 0 bytes in all, 0 free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    files.check_output(tmp_path / "a.tif", like(STACK))


@posix
def test_a_full_disk_is_told_with_the_output_and_what_it_needs(tmp_path):
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2]); from test_storage import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: save(Path(sys.argv[1]), STACK)\n"
        "except OSError as error: print(error.errno, error.filename, error.strerror)\n"
    )
    done = run_child(code, tmp_path / "a.tif", Path(__file__).parent)
    assert re.match(
        rf"{errno.EFBIG} {tmp_path / 'a.tif'} the output needs \d{{5}} bytes, which are not free "
        r"there",
        done.stdout,
    ), done
    assert os.listdir(tmp_path) == []


# Inputs that shrink


def shortened(path):
    os.truncate(path, path.stat().st_size // 3)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_input_that_shrinks_while_it_is_denoised_is_refused(compression, tmp_path, monkeypatch):
    import tifffile

    monkeypatch.setattr("dn_core.files.tiff.EAGER_BYTES", 0)
    path, pixels = (
        tmp_path / "a.tif",
        np.random.default_rng(3).integers(0, 4000, (6, 200, 200)).astype(np.uint16),
    )
    tifffile.imwrite(path, pixels, compression=compression, photometric="minisblack")
    words = "became shorter while it was read" if compression is None else "is damaged"

    def denoise_and_shorten():
        with (
            files.open_image(path) as image,
            files.create_image(tmp_path / "b.tif", image) as target,
        ):
            for step in denoise_steps(image.source, channel_axis=0, out=target):
                if step.done == 1:
                    shortened(path)

    with pytest.raises(ImageFileError, match=rf"a\.tif {words}"):
        denoise_and_shorten()
    assert os.listdir(tmp_path) == ["a.tif"]


@posix
def test_the_command_says_that_its_input_shrank(tmp_path):
    path = save(
        tmp_path / "a.tif",
        np.random.default_rng(3).integers(0, 4000, (40, 600, 600)).astype(np.uint16),
    )
    command = [sys.executable, "-m", "dn_core.cli", "denoise", path, "-o", tmp_path / "b.tif"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        while not any(name.startswith(".part-") for name in os.listdir(tmp_path)):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        os.truncate(path, 1000)
        _, errors = child.communicate(timeout=120)
    assert child.returncode == 1
    assert re.search(
        r"a\.tif became shorter while it was read: it must have \d+ bytes, got 1000\. Wait until",
        errors,
    )
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["a.tif"]


def test_training_images_that_shrink_are_refused(tmp_path):
    rng = np.random.default_rng(4)
    clean = rng.normal(1000, 200, (128, 128)).cumsum(0)
    np.save(tmp_path / "clean.npy", clean)
    np.save(tmp_path / "noisy.npy", clean + rng.normal(0, 50, clean.shape))
    scene = user_images.pairs(tmp_path / "noisy.npy", tmp_path / "clean.npy").scenes[0]
    assert scene.noisy[0][-32:].shape == (32, 128)
    shortened(tmp_path / "noisy.npy")
    with pytest.raises(ImageFileError, match="noisy.npy became shorter"):
        scene.noisy[0][-32:]


def test_a_training_array_that_is_cut_off_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", STACK)
    shortened(tmp_path / "a.npy")
    with pytest.raises(
        ValueError,
        match=r"a\.npy is not an array that can be read \(it must have \d+ bytes, got \d+\)",
    ):
        user_images.repeats(tmp_path / "a.npy")


# What killed writers leave

WRITING = (
    "import sys; sys.path.insert(0, sys.argv[2]); from test_storage import *\n"
    "with files.create_image(sys.argv[1], like(STACK[0]), overwrite=True) as target:\n"
    "    target[...] = STACK[1]\n"
    "    if sys.argv[1].endswith('.png'): open(next(Path(sys.argv[1]).parent.glob('.part-*')), "
    "'w').close()\n"
    "    print('writing', flush=True)\n"
    "    sys.stdin.read()\n"
)


def writing(path):
    """A process that has begun to write an image, and goes on when its input is closed."""
    command = [sys.executable, "-c", WRITING, path, Path(__file__).parent]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "writing\n"
    return child


def killed_while_writing(path):
    with writing(path) as child:
        child.kill()


def hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


@posix
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_next_run_to_the_same_output_clears_what_a_killed_one_left(ending, tmp_path):
    path = save(tmp_path / f"a{ending}")
    killed_while_writing(path)
    assert len(hidden(tmp_path)) == 1
    assert (files.read_image(path).pixels == STACK[0]).all()
    other = save(tmp_path / f"other{ending}")
    assert len(hidden(tmp_path)) == 1, "another output's, which is not asked for"
    save(path, STACK[2])
    assert sorted(os.listdir(tmp_path)) == [path.name, other.name]
    assert (files.read_image(path).pixels == STACK[2]).all()


@posix
@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_two_runs_to_the_same_output_leave_each_other_alone(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    with writing(path) as child:
        before = hidden(tmp_path)
        save(path, STACK[2])
        assert hidden(tmp_path) == before
        assert (files.read_image(path).pixels == STACK[2]).all()
        child.stdin.close()
        assert child.wait(60) == 0
    assert (files.read_image(path).pixels == STACK[1]).all()
    assert os.listdir(tmp_path) == [path.name]


@posix
def test_a_writer_killed_between_the_two_renames_of_a_folder_does_not_cost_the_old_one(tmp_path):
    path = save(tmp_path / "a.zarr")
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from test_storage import *\n"
        "def replace(source, target, real=os.replace):\n"
        "    real(source, target)\n"
        "    if '.old-' in str(target): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = replace\n"
        "save(Path(sys.argv[1]), STACK[1])\n"
    )
    assert run_child(code, path, Path(__file__).parent).returncode == -signal.SIGKILL
    assert not path.exists()
    with pytest.raises(KeyboardInterrupt), files.create_image(path, like(STACK[2]), overwrite=True):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a.zarr"]
    assert (files.read_image(path).pixels == STACK[0]).all()


@pytest.mark.parametrize(
    "name",
    [
        ".part-59f99dc7.a.tif",
        *(f".{word}-000000-0000-0000-1-00000000.a.tif" for word in ("part", "old")),
    ],
)
def test_what_may_be_of_a_living_process_elsewhere_stays_for_a_day(name, tmp_path):
    path, left = save(tmp_path / "a.tif"), tmp_path / name
    left.write_bytes(b"half")
    save(path)
    assert left.exists()
    os.utime(left, (0, time.time() - 23 * 3600))
    save(path)
    assert left.exists()
    os.utime(left, (0, time.time() - 25 * 3600))
    save(path)
    assert os.listdir(tmp_path) == ["a.tif"]


def test_a_folder_elsewhere_is_as_old_as_the_newest_file_in_it(tmp_path):
    left = tmp_path / ".part-000000-0000-0000-1-00000000.a.zarr"
    (left / "0").mkdir(parents=True)
    (left / "0" / "c").write_bytes(b"new")
    for folder in (left / "0", left):
        os.utime(folder, (0, 0))
    path = save(tmp_path / "a.zarr")
    assert left.exists()
    os.utime(left / "0" / "c", (0, 0))
    save(path)
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_temporary_names_say_whose_they_are_and_fit(tmp_path):
    name = safe_write.named_by_process(tmp_path, ".part", "x" * 200).name
    assert len(name) <= 255
    assert f"-{os.getpid()}-" in name


# Permissions


def modes(path):
    return {
        inner.relative_to(path).as_posix(): stat.S_IMODE(inner.stat().st_mode)
        for inner in (path, *path.rglob("*"))
    }


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o646])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_replaced_file_keeps_its_mode(ending, mode, tmp_path):
    path = save(tmp_path / f"a{ending}")
    for inner in (path, *path.rglob("*")):
        inner.chmod(mode | 0o111 if inner.is_dir() else mode)
    before = modes(path)
    save(path, STACK[1])
    assert (files.read_image(path).pixels == STACK[1]).all()
    assert modes(path) == before


@posix
def test_what_a_link_points_to_keeps_its_mode(tmp_path):
    path, link = save(tmp_path / "a.tif"), tmp_path / "link.tif"
    path.chmod(0o604)
    link.symlink_to(path)
    save(link, STACK[1])
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@posix
def test_while_it_is_written_nobody_may_read_who_may_not_read_the_old_one(tmp_path):
    path = save(tmp_path / "a.tif")
    path.chmod(0o600)
    with safe_write.atomic_write(path) as temporary:
        temporary.write_bytes(b"secret")
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


@posix
@pytest.mark.skipif(os.name != "nt" and os.geteuid() != 0, reason="only root may give files away")
def test_a_replaced_file_keeps_its_owner_where_that_is_allowed(tmp_path):
    path = save(tmp_path / "a.tif")
    os.chown(path, 12345, 54321)
    path.chmod(0o640)
    save(path, STACK[1])
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 54321, 0o640)


@linux
def test_a_replaced_file_keeps_its_attributes(tmp_path):
    path = save(tmp_path / "a.tif")
    try:
        os.setxattr(path, "user.project", b"cells")
    except OSError:
        pytest.skip("the drive has no attributes")
    save(path, STACK[1])
    assert os.getxattr(path, "user.project") == b"cells"


@posix
def test_drives_that_refuse_to_change_modes_are_no_error(tmp_path, monkeypatch):
    path = save(tmp_path / "a.tif")
    path.chmod(0o666)

    def refused(*arguments, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    monkeypatch.setattr(os, "chown", refused)
    before = os.umask(0o022)
    try:
        with pytest.warns(
            RuntimeWarning, match=r"the permissions of .*a\.tif \(666\) could not be kept"
        ):
            save(path, STACK[1])
    finally:
        os.umask(before)
    assert (files.read_image(path).pixels == STACK[1]).all()


# Renaming and locking


def test_a_target_that_another_program_holds_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    path, refusals = save(tmp_path / "a.tif"), [errno.EACCES, errno.EBUSY]

    def replace(source, target, real=os.replace):
        if refusals:
            raise OSError(refusals.pop(), "held")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    save(path, STACK[1])
    assert (files.read_image(path).pixels == STACK[1]).all()
    assert not refusals


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_drive_that_cannot_lock_is_used_with_a_warning(number, tmp_path, monkeypatch):
    import fcntl

    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    done = []
    with (
        pytest.warns(RuntimeWarning, match="cannot lock files"),
        locked(tmp_path / "lock", 0, "busy"),
    ):
        done.append("inside")
    assert done == ["inside"]


def test_a_lock_keeps_others_out_with_the_words_given(tmp_path):
    lock = tmp_path / "lock"
    with (
        locked(lock, 0, "busy"),
        pytest.raises(BlockingIOError, match="somebody is there"),
        locked(lock, 0, "somebody is there"),
    ):
        pass
    with locked(lock, 0, "busy"):
        pass


def test_a_lock_may_be_let_go_of_by_another_thread(tmp_path):
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(tmp_path / "lock", 0, "busy"))
        thread = threading.Thread(target=stack.close)
        thread.start()
        thread.join()
        with locked(tmp_path / "lock", 0, "busy"):
            pass
