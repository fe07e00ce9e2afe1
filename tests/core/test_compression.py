"""The codecs: what comes back, how many bytes it takes, and that better settings are better."""

from __future__ import annotations

import io
import itertools
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from dn_core import compression
from dn_core.compression import bpg, hevc_name, jpeg, jpeg2000

GREY = data.camera()[:201, :303]  # sides that are no multiples of a block
BEST_FIRST = {jpeg: (95, 60, 20, 5), jpeg2000: (4, 12, 40, 120), bpg: (10, 25, 38, 50)}


@pytest.mark.parametrize("codec", BEST_FIRST)
def test_more_bytes_give_a_better_image(codec):
    results = [codec(GREY, setting) for setting in BEST_FIRST[codec]]
    assert all(
        result.image.shape == GREY.shape and result.image.dtype == np.uint8 for result in results
    )
    scores = [peak_signal_noise_ratio(GREY, result.image) for result in results]
    for (better, worse), (more, less) in zip(
        itertools.pairwise(scores), itertools.pairwise(results), strict=True
    ):
        assert better > worse + 2
        assert more.bytes > less.bytes
    assert scores[0] > 38


def test_jpeg_is_baseline_jpeg_of_pillow():
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "JPEG", quality=20)
    assert (jpeg(GREY, 20).image == np.asarray(Image.open(buffer))).all()
    assert jpeg(GREY, 20).bytes == len(buffer.getvalue())


def test_jpeg2000_keeps_to_its_ratio():
    assert jpeg2000(GREY, 20).bytes == pytest.approx(GREY.size / 20, rel=0.05)


def test_the_encoder_is_named():
    assert hevc_name().startswith(("BPG (bpgenc)", "HEVC intra (x265"))


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (8, 8), (17, 64)])
def test_tiny_images_pass_through_every_codec(size):
    image = GREY[: size[0], : size[1]]
    for codec, settings in BEST_FIRST.items():
        assert codec(image, settings[0]).image.shape == size


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jpeg(GREY, 0), "quality must be a number in 1..100, got 0"),
        (lambda: jpeg2000(GREY, 0.5), "ratio must be a number in 1..1000, got 0.5"),
        (lambda: bpg(GREY, 52), "qp must be a number in 0..51, got 52"),
        (lambda: jpeg(GREY / 255.0, 50), r"uint8 \(height, width\), got float64 \(201, 303\)"),
        (lambda: bpg(data.astronaut(), 30), r"must be uint8 \(height, width\), got uint8"),
    ],
)
def test_what_cannot_be_coded_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_without_an_encoder_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(compression, "_has_bpgenc", lambda: False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImportError, match="pip install pillow-heif"):
        bpg(GREY, 30)
