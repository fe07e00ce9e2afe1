"""Noise2Void by CAREamics, trained on the very image that it denoises; minutes an image."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from comparison.processes import say

from dn_core.paper.protocol import psnr
from micrographs.cases import Case, Image

__all__ = ["IMAGES", "installed", "measure_noise2void", "noise2void"]

IMAGES = (("W2S", "099_1"), ("FMD 1", "fish"), ("FMD 1", "widefield G"))
"""One camera frame, one confocal image, one with noise that neighbours share."""
EPOCHS, BATCH, PATCH = 60, 16, 64


def installed() -> str:
    """CAREamics' version; empty where it is not installed."""
    if importlib.util.find_spec("careamics") is None:
        return ""
    return importlib.metadata.version("careamics")


def noise2void(image: Image, epochs: int = EPOCHS) -> Image:
    """Train CAREamics' default network on an image, then denoise it.

    Parameters
    ----------
    image : Image
        ``(height, width)``.
    epochs : int, default 60
        Times that all patches of 64x64 pixels are seen.

    Returns
    -------
    Image
        As large as `image`.
    """
    from careamics import CAREamist
    from careamics.config import create_advanced_n2v_config

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = create_advanced_n2v_config(
        experiment_name="image",
        data_type="array",
        axes="YX",
        patch_size=[PATCH, PATCH],
        batch_size=BATCH,
        num_epochs=epochs,
        seed=1,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        careamist = CAREamist(config, work_dir=Path(folder), enable_progress_bar=False)
        careamist.train(train_data=image)
        predicted: Any = careamist.predict(pred_data=image)
    while isinstance(predicted, (list, tuple)):
        predicted = predicted[0]
    return np.asarray(predicted, np.float32).reshape(image.shape)


def measure_noise2void(cases: list[Case], epochs: int = EPOCHS) -> dict[str, Any] | None:
    """PSNR and seconds on some images; None where CAREamics is not installed.

    Parameters
    ----------
    cases : list of Case
        Those of `IMAGES` among them are used.
    epochs : int, default 60
        See `noise2void`.

    Returns
    -------
    dict, optional
        For the record.
    """
    if not installed():
        say("left out, as careamics is not installed: Noise2Void")
        return None
    rows = []
    for case in cases:
        if (case.collection, case.name) in IMAGES:
            say(f"Noise2Void: {case.collection}, {case.name}")
            began = time.perf_counter()
            image = noise2void(case.noisy, epochs)
            rows.append(
                {
                    "collection": case.collection,
                    "name": case.name,
                    "psnr": round(psnr(case.truth, image), 3),
                    "seconds": time.perf_counter() - began,
                }
            )
    training = (
        f"CAREamics {installed()}, its default network and settings, trained on the image itself: "
        f"{epochs} epochs of batches of {BATCH} patches of {PATCH}x{PATCH} pixels"
    )
    return {"images": rows, "training": training} if rows else None
