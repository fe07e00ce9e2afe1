"""What an image's file lacks is reported in the window."""

import numpy as np
import pytest
import tifffile
import zarr

import dn_core

NAME = "Denoise layer"
PIXELS = np.random.default_rng(0).normal(300, 30, (60, 80)).clip(1).astype(np.uint16)


def saved(path):
    array = zarr.create_array(path, shape=PIXELS.shape, dtype="u2", chunks=(20, 20))
    array[...] = PIXELS
    (path / "c" / "1" / "2").unlink()
    return zarr.open_array(path, mode="r")


def sparse_tiff(path):
    """A TIFF without its last tile, as programs write it that leave black ones out."""
    tiles = (PIXELS[y : y + 32, x : x + 32] for y in range(0, 60, 32) for x in range(0, 80, 32))
    padded = (np.pad(tile, ((0, 32 - tile.shape[0]), (0, 32 - tile.shape[1]))) for tile in tiles)
    tifffile.imwrite(
        path, padded, shape=PIXELS.shape, dtype="u2", tile=(32, 32), photometric="minisblack"
    )
    with tifffile.TiffFile(path) as tif:
        places = [
            (tif.pages[0].tags[code].valueoffset, {3: 2, 4: 4}[int(tif.pages[0].tags[code].dtype)])
            for code in (324, 325)
        ]
    content = bytearray(path.read_bytes())
    for place, width in places:
        content[place + 5 * width : place + 6 * width] = bytes(width)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["array", "opened zarr", "opened TIFF"])
def test_what_was_missing_is_reported_with_the_result(viewer, open_widget, wait, tmp_path, kind):
    array = saved(tmp_path / "a.zarr")
    if kind == "array":
        viewer.add_image(array, contrast_limits=(0, 500))
    elif kind == "opened zarr":
        viewer.open(tmp_path / "a.zarr", plugin="napari", contrast_limits=(0, 500))
    else:
        sparse_tiff(tmp_path / "a.tif")
        viewer.open(tmp_path / "a.tif", plugin="napari")
    pixels = np.asarray(viewer.layers[0].data)
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    wait(lambda: widget.task is None)
    reported = "1 of 6 tiles (17%)" if kind == "opened TIFF" else "1 of 12 chunks (8%)"
    assert widget.status.value.endswith(f"{reported} are missing and were read as 0.")
    np.testing.assert_array_equal(np.asarray(viewer.layers[-1].data), dn_core.denoise(pixels))


def test_nothing_is_reported_where_all_is_there(viewer, open_widget, wait):
    viewer.add_image(PIXELS)
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert widget.status.value.endswith("megapixels per second.")
