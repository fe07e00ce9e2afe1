"""Layers to arrays: axes, and lazy arrays that are computed when they are sliced."""

import dask.array as da
import numpy as np
import pytest
from napari.layers import Image

from napari_dnresnet.axes import LayerAxes, default_axes, guess_message, time_axes
from napari_dnresnet.layers import LazyArray, readable


@pytest.mark.parametrize(
    ("labels", "shape", "rgb", "letters"),
    [
        (("-2", "-1"), (4, 5), False, "YX"),
        (("-3", "-2", "-1"), (3, 4, 5), False, "ZYX"),
        (("-4", "-3", "-2", "-1"), (2, 3, 4, 5), False, "TZYX"),
        (("-5", "-4", "-3", "-2", "-1"), (1, 2, 3, 4, 5), False, "QTZYX"),
        (("time", "channel", "y", "x"), (2, 3, 4, 5), False, "TCYX"),
        (("c", "y", "x"), (3, 4, 5), False, "CYX"),
        (("y", "x"), (4, 5, 3), True, "YXS"),
        (("-3", "-2", "-1"), (7, 4, 5, 4), True, "ZYXS"),
        (("a", "a", "y"), (3, 4, 5), False, "ZYX"),  # labels that do not say it
        (("-3", "-2", "-1"), (60, 50, 5), False, "YXC"),
        (("-4", "-3", "-2", "-1"), (2, 60, 50, 4), False, "ZYXC"),
        (("-5", "-4", "-3", "-2", "-1"), (2, 2, 60, 50, 3), False, "TZYXC"),
        (("-3", "-2", "-1"), (40, 50, 1), False, "YXC"),
        (("z", "y", "x"), (60, 50, 5), False, "ZYX"),  # labels that say it
    ],
)
def test_axes_come_from_labels_or_from_the_right(labels, shape, rgb, letters):
    assert default_axes(labels, shape, rgb) == letters


def test_a_unit_of_time_says_which_axis_is_time():
    assert default_axes(("-3", "-2", "-1"), (3, 4, 5), False, times=(0,)) == "TYX"
    assert default_axes(("-4", "-3", "-2", "-1"), (2, 3, 4, 5), False, times=(1,)) == "QTYX"
    layer = Image(np.zeros((3, 4, 5)), units=("s", "um", "um"))
    assert time_axes(layer) == (0,)


@pytest.mark.parametrize(
    ("letters", "shape", "channel_axis", "said"),
    [
        ("YX", (40, 3), None, False),
        ("ZYX", (9, 40, 50), None, False),
        ("ZYX", (90, 40, 3), None, True),
        ("ZYX", (9, 40, 1), None, True),
        ("TXY", (9, 40, 50), None, False),
        ("YXS", (40, 50, 3), 2, True),
        ("YXC", (40, 50, 5), 2, True),
        ("YXC", (40, 50, 1), 2, False),
        ("TCYX", (2, 3, 40, 50), None, False),
    ],
)
def test_the_library_is_given_what_it_would_have_to_guess(letters, shape, channel_axis, said):
    axes = LayerAxes(letters, shape)
    assert axes.channel_axis == channel_axis
    assert axes.differs_from_default == said


@pytest.mark.parametrize(
    ("settings", "letters", "message"),
    [
        (
            {},
            "YXC",
            "A guess from the shape (60, 50, 5): its last axis, of 5, is taken as channels. "
            "Change the letters if it is wrong.",
        ),
        ({}, "ZYX", ""),  # what the user typed is no guess
        ({"axis_labels": ("y", "x", "c")}, "YXC", ""),
    ],
)
def test_a_guess_is_reported(settings, letters, message):
    assert guess_message(Image(np.zeros((60, 50, 5)), rgb=False, **settings), letters) == message


@pytest.mark.parametrize("letters", ["YX", "YXYX", "XYZ", "XZY", "Z1X", "YZX", "CYXZ", "YXCS"])
def test_axes_that_do_not_fit_are_refused(letters):
    with pytest.raises(ValueError, match="Axes must"):
        LayerAxes(letters, (3, 4, 5, 6)[: max(3, len(letters))])


def test_each_axis_is_described():
    assert LayerAxes("TCYX", (40, 3, 64, 48)).describe().splitlines() == [
        "T: 40 time points, each denoised on its own",
        "C: 3 channels, each denoised on its own",
        "YX: planes of 64 x 48 pixels",
    ]
    assert (
        LayerAxes("TXY", (2, 64, 48)).describe().splitlines()[-1] == "XY: planes of 64 x 48 pixels"
    )
    assert "alpha unchanged" in LayerAxes("YXS", (5, 6, 4)).describe()


def test_a_lazy_array_is_computed_a_plane_at_a_time():
    computed = []

    def count(block, block_info=None):
        if block.size:
            computed.append(block_info[0]["chunk-location"] if block_info else None)
        return block

    pixels = np.arange(3 * 40 * 50).reshape(3, 40, 50)
    lazy = readable(
        da.from_array(pixels, chunks=(1, 40, 50)).map_blocks(
            count, dtype=pixels.dtype, meta=np.empty((0, 0, 0), int)
        )
    )
    assert isinstance(lazy, LazyArray)
    assert lazy.shape == (3, 40, 50)
    assert lazy.chunks == (1, 40, 50)
    for rows in (slice(0, 20), slice(10, 40)):
        assert np.array_equal(lazy[1, rows, slice(5, 25)], pixels[1, rows, 5:25])
    assert len(computed) == 1, "tiles of a plane overlap, and it is computed once"
    assert np.array_equal(lazy[2], pixels[2])
    assert np.array_equal(lazy[0:2, 3], pixels[0:2, 3])
    assert readable(pixels) is pixels
