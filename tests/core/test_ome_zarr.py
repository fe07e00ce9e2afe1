"""OME-Zarr as written is valid after the specification, checked by ome-zarr-models."""

from pathlib import Path

import numpy as np
import ome_zarr_models.v04
import ome_zarr_models.v05
import pydantic_zarr.v2
import pytest
import tifffile
import zarr

from dn_core import files

PIXELS = np.random.default_rng(0).integers(0, 65536, (2, 3, 4, 40, 48)).astype(np.uint16)
LEVELS = [("0", (40, 48)), ("1", (20, 24)), ("2", (10, 12))]


def image_of(axes: str, version: int, **metadata) -> files.ImageFile:
    """The last of the pixels' axes under these letters, as an image of another format."""
    pixels = PIXELS[(0,) * (PIXELS.ndim - len(axes))]
    return files.ImageFile(
        Path("memory"), pixels, axes, "tiff", {"zarr_format": version, **metadata}
    )


def write(path: Path, image: files.ImageFile) -> Path:
    with files.create_image(path, image) as target:
        target[...] = image.pixels
    return path


def validated(path: Path, version: int):
    """The OME attributes of an image, read by ome-zarr-models in the version they must have."""
    # pydantic 2.14 does not find this module's names by itself.
    ome_zarr_models.v04.Image.model_rebuild(_types_namespace=vars(pydantic_zarr.v2))
    model = ome_zarr_models.v04.Image if version == 2 else ome_zarr_models.v05.Image
    attributes = model.from_zarr(zarr.open_group(path, mode="r")).ome_attributes
    omero = getattr(attributes, "omero", None)
    if omero is not None:  # the models of 0.5 do not look into it
        ome_zarr_models.v04.image.Omero.model_validate(dict(omero))
    return attributes


def sizes(axes: str) -> dict[str, object]:
    space = {axis: size for axis, size in {"X": 0.25, "Y": 0.25, "Z": 2.0}.items() if axis in axes}
    time = {"time_increment": 1.5, "time_unit": "s"} if "T" in axes else {}
    return {"pixel_size": space, "pixel_unit": dict.fromkeys(space, "µm"), **time}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["YX", "ZYX", "QYX", "CYX", "TCYX", "TCZYX", "ZTCYX"])
def test_axes_and_sizes_are_valid(axes: str, version: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.zarr", image_of(axes, version, **sizes(axes)))
    (multiscale,) = validated(path, version).multiscales
    assert {axis.name for axis in multiscale.axes} == set(axes.lower())
    units = {axis.name: axis.unit for axis in multiscale.axes if axis.unit}
    assert units == {
        name: "second" if name == "t" else "micrometer" for name in set(axes.lower()) - {"q", "c"}
    }
    scale = multiscale.datasets[0].coordinateTransformations[0].scale
    assert scale[-2:] == [0.25, 0.25]
    assert (files.read_image(path).pixels.shape) == tuple(
        image_of(axes, version).shape[axes.index(axis.name.upper())] for axis in multiscale.axes
    )


@pytest.mark.parametrize("version", [2, 3])
def test_channel_names_are_valid(version: int, tmp_path: Path) -> None:
    image = image_of("CYX", version, channel_names=["DAPI", "GFP", "Cy5", "brightfield"])
    attributes = validated(write(tmp_path / "a.ome.zarr", image), version)
    channels = dict(attributes.omero)["channels"]
    assert [dict(channel)["label"] for channel in channels] == image.metadata["channel_names"]
    for channel, plane in zip(channels, image.pixels, strict=True):
        window = dict(dict(channel)["window"])
        assert (window["min"], window["max"]) == (0, 65535)
        assert (window["start"], window["end"]) == (plane.min(), plane.max())


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32", "complex64"])
@pytest.mark.parametrize("value", [0, 1, np.nan])
def test_constant_channels_have_a_window(value: float, dtype: str, tmp_path: Path) -> None:
    if np.isnan(value) and dtype in ("bool", "uint8"):
        pytest.skip("integers have no NaN")
    pixels = np.full((2, 8, 8), value, dtype)
    image = files.ImageFile(Path("memory"), pixels, "CYX", "tiff", {"channel_names": ["a", "b"]})
    attributes = validated(write(tmp_path / "a.ome.zarr", image), 3)
    for channel in attributes.omero["channels"]:
        assert channel["window"]["start"] < channel["window"]["end"]


def test_colours_of_an_ome_tiff_are_kept(tmp_path: Path) -> None:
    red, blue = -16776961, 65535  # RGBA as one signed number
    metadata = {"axes": "CYX", "Channel": {"Name": ["a", "b"], "Color": [red, blue]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS[0, 0, :2], metadata=metadata)
    with (
        files.open_image(tmp_path / "a.ome.tif") as image,
        pytest.warns(UserWarning, match="channel settings"),
    ):
        path = write(tmp_path / "a.ome.zarr", image)
    channels = validated(path, 3).omero["channels"]
    assert [channel["color"] for channel in channels] == ["FF0000", "0000FF"]


@pytest.mark.parametrize("version", [2, 3])
def test_pyramids_are_valid(version: int, tmp_path: Path) -> None:
    image = image_of("YX", version, levels=LEVELS, **sizes("YX"))
    (multiscale,) = validated(write(tmp_path / "a.ome.zarr", image), version).multiscales
    assert [dataset.path for dataset in multiscale.datasets] == ["0", "1", "2"]
    scales = [dataset.coordinateTransformations[0].scale for dataset in multiscale.datasets]
    assert scales == [[0.25, 0.25], [0.5, 0.5], [1.0, 1.0]]


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_written_from_an_ome_zarr_stays_valid(version: int, tmp_path: Path) -> None:
    first = image_of("CYX", version, channel_names=["a", "b", "c", "d"], **sizes("CYX"))
    with files.open_image(write(tmp_path / "a.ome.zarr", first)) as image:
        second = write(tmp_path / "b.ome.zarr", image)
    assert validated(second, version).multiscales[0].axes[0].name == "c"


def test_what_is_written_from_an_ome_tiff_is_valid(tmp_path: Path) -> None:
    metadata = {
        "axes": "CZYX",
        "PhysicalSizeX": 0.1,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 0.1,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": ["red", "green", "blue"]},
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS[0], metadata=metadata)
    with files.open_image(tmp_path / "a.ome.tif") as image:
        path = write(tmp_path / "a.ome.zarr", image)
    attributes = validated(path, 3)
    labels = [channel["label"] for channel in attributes.omero["channels"]]
    assert labels == ["red", "green", "blue"]
