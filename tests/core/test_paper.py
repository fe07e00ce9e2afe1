"""The protocol of measuring, the paper's tables, published baselines, and `dn-resnet evaluate`."""

from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.metrics import structural_similarity
from small_models import small_model
from typer.testing import CliRunner

from dn_core.checkpoints import save_checkpoint
from dn_core.cli import app
from dn_core.errors import CheckpointError
from dn_core.noise import Gaussian
from dn_core.paper.baselines import BaselineMethod, load_baseline
from dn_core.paper.figures import codecs
from dn_core.paper.protocol import (
    Level,
    ModelMethod,
    evaluate,
    level_named,
    milliseconds,
    paper_levels,
    psnr,
    read_images,
    ssim,
)
from dn_core.paper.tables import TABLES, Cost, paper_columns, paper_rows, table_of
from dn_core.tensor_files import write_tensors

CAMERA = data.camera()[100:180, 200:290].astype(np.float32) / 255


class Halfway:
    """A method that needs no network: the mean of the image and the one it should find."""

    name, parameters, macs_per_pixel = "halfway", 1, 2000.0

    def __call__(self, image, std):
        return (image + CAMERA) / 2


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in (data.camera, data.coins):
        Image.fromarray(picture()[100:164, 100:180]).save(folder / f"{picture.__name__}.png")
    return folder


def peer_weights(planes_in=1, planes_out=1, layers=3):
    rng = np.random.default_rng(0)
    channels = [planes_in, *[4] * (layers - 1), planes_out]
    tensors = {}
    for index, (before, after) in enumerate(itertools.pairwise(channels)):
        tensors[f"conv{index}.weight"] = rng.normal(0, 0.1, (after, before, 3, 3)).astype(
            np.float32
        )
        tensors[f"conv{index}.bias"] = rng.normal(0, 0.1, after).astype(np.float32)
    return tensors


# The protocol


def test_a_method_is_called_by_its_version_where_it_was_named_so():
    assert ModelMethod("dn-fast").name == "dn-fast"
    assert ModelMethod("dn-fast@1").name == "dn-fast@1"


def test_the_papers_16_levels():
    names = list(paper_levels())
    assert len(names) == 16
    assert names[:5] == ["gaussian 10", "gaussian 25", "gaussian 50", "gaussian 75", "poisson 1"]
    assert names[8:10] == ["poisson-gaussian 0.1/1", "poisson-gaussian 0.2/2"]
    assert names[-1] == "poisson-gaussian 12/120"


@pytest.mark.parametrize("level", paper_levels().values(), ids=lambda level: level.name)
def test_the_noise_is_the_same_for_all_and_as_strong_as_said(level):
    images = [np.full((200, 200), 0.5, np.float32), CAMERA]
    first, again, other = (
        level.add_noise(images),
        level.add_noise(images),
        level.add_noise(images, seed=1),
    )
    for (noisy, std), (same, _), image in zip(first, again, images, strict=True):
        assert noisy.dtype == np.float32
        assert (noisy == same).all()
        assert np.std(noisy - image) == pytest.approx(std, rel=0.05)
    assert (first[0][0] != other[0][0]).any()
    assert (
        min(noisy.min() for noisy, _ in first) < 0
        or level.name.startswith("poisson ")
        or "/" in level.name
    ), "nothing is clipped"


def test_gaussian_noise_is_that_of_the_published_figures():
    rng = np.random.default_rng(0)
    expected = [CAMERA + 25 / 255 * rng.standard_normal(CAMERA.shape) for _ in range(2)]
    for (noisy, _), image in zip(
        Level("g", Gaussian(25)).add_noise([CAMERA, CAMERA]), expected, strict=True
    ):
        np.testing.assert_allclose(noisy, image, atol=1e-6)


def test_scores_are_those_of_scikit_image_after_clipping():
    noisy = CAMERA + np.random.default_rng(1).normal(0, 0.3, CAMERA.shape).astype(np.float32)
    clipped = np.clip(noisy, 0, 1)
    assert psnr(CAMERA, noisy) == pytest.approx(
        -10 * np.log10(np.mean((clipped.astype(float) - CAMERA) ** 2))
    )
    expected = structural_similarity(
        CAMERA, clipped, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(CAMERA, noisy) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        ("jpeg 80", "jpeg 10"),
        ("jpeg2000 10", "jpeg2000 60"),
        ("super-resolution 2", "super-resolution 4"),
    ],
)
def test_levels_of_compression_and_others_go_by_name(weak, strong):
    assert level_named("poisson 8") == paper_levels()["poisson 8"]
    errors = [psnr(CAMERA, level_named(name).add_noise([CAMERA])[0][0]) for name in (weak, strong)]
    assert errors[0] > errors[1] + 1
    assert psnr(CAMERA, level_named("gaussian 15").add_noise([CAMERA])[0][0]) == pytest.approx(
        24.6, abs=0.5
    )


@pytest.mark.parametrize("name", ["jpeg", "jpeg 0", "jpeg x", "fog 3", "gaussian -1", ""])
def test_levels_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match="level must be one of|cannot be made"):
        level_named(name)


def test_every_method_meets_every_level():
    levels = [paper_levels()[name] for name in ("gaussian 10", "poisson 8")]
    scores = list(evaluate([Halfway(), ModelMethod("dn-fast")], [CAMERA], levels))
    assert [(score.method, score.level) for score in scores] == [
        (method, level.name) for level in levels for method in ("halfway", "dn-fast")
    ]
    assert [(score.done, score.total) for score in scores] == [(count, 4) for count in (1, 2, 3, 4)]
    noisy = levels[0].add_noise([CAMERA])[0][0]
    assert scores[0].psnr == pytest.approx(psnr(CAMERA, (noisy + CAMERA) / 2))
    assert scores[1].psnr > psnr(CAMERA, noisy) + 2, "the bundled model denoises"
    assert milliseconds(ModelMethod("dn-fast")) > 0


def test_a_model_with_a_noise_map_is_told_the_noise(tmp_path):
    path = tmp_path / "told.safetensors"
    save_checkpoint(path, small_model("noise map").checkpoint)
    method = ModelMethod(path)
    assert (method(CAMERA, 0.01) != method(CAMERA, 0.3)).any()


def test_images_are_read_grey_in_order(pictures):
    Image.fromarray(data.astronaut()[:64, :80]).save(pictures / "astronaut.png")
    images = read_images(pictures)
    assert [image.shape for image in images] == [(64, 80)] * 3
    np.testing.assert_array_equal(
        images[1], data.camera()[100:164, 100:180].astype(np.float32) / 255
    )
    assert len(read_images(pictures, 2)) == 2
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)


# Baselines


@pytest.mark.parametrize("planes", [(1, 1), (5, 4)])
def test_peers_are_read_from_their_weights(planes, tmp_path):
    path = tmp_path / "baseline.safetensors"
    write_tensors(path, peer_weights(*planes), {})
    baseline = load_baseline(path)
    method = BaselineMethod(baseline)
    assert baseline.parameters == sum(value.size for value in peer_weights(*planes).values())
    assert method(CAMERA[:31, :33], 0.1).shape == (31, 33)
    assert (method(CAMERA, 0.1) != method(CAMERA, 0.2)).any() == baseline.takes_sigma
    np.testing.assert_allclose(
        BaselineMethod(baseline, channels_last=False)(CAMERA, 0.1), method(CAMERA, 0.1), atol=1e-5
    )


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"conv0.weight": np.zeros((1, 1, 3, 3), "f4")},
            "the weights and biases of conv0, conv1 and so on, got",
        ),
        (peer_weights(2, 2), "got 2 and 2"),
        ({**peer_weights(), "conv1.weight": np.zeros((4, 4, 5, 5), "f4")}, "3x3 convolutions"),
    ],
)
def test_what_is_no_baseline_is_refused(tensors, words, tmp_path):
    write_tensors(tmp_path / "baseline.safetensors", tensors, {})
    with pytest.raises(CheckpointError, match=words):
        load_baseline(tmp_path / "baseline.safetensors")


def test_a_published_peer_reaches_its_published_figure(data_folder):
    if not (data_folder / "peers" / "dncnn_s25.safetensors").exists():
        pytest.skip(f"no baselines in {data_folder}")
    images = read_images(data_folder / "test" / "set12", 2)
    (score,) = evaluate(
        [BaselineMethod(load_baseline(data_folder / "peers" / "dncnn_s25.safetensors"))],
        images,
        [paper_levels()["gaussian 25"]],
    )
    assert score.psnr == pytest.approx((30.10 + 33.04) / 2, abs=0.02)


# Tables


@pytest.mark.parametrize("number", TABLES)
def test_the_papers_figures_are_whole(number):
    columns, rows = paper_columns(number), paper_rows(number)
    levels = set(paper_levels())
    assert {level.partition(": ")[2] or level for level in rows} == (
        {"gaussian 50", "poisson 8"} if number == 5 else levels
    )
    for row in rows.values():
        assert len(row) == len(columns)
        for cell in row:
            ratio, _, similarity = cell.partition("/")
            assert cell == "-" or (
                20 < float(ratio) < 36 and (number == 1 or 0.5 < float(similarity) < 0.95)
            )


def test_better_networks_of_the_paper_have_better_figures():
    """A mistake in copying would most likely break an order.

    Deeper is better at every level, evolution better than one-shot.
    """
    for row in paper_rows(1).values():
        assert sorted(row[:6], key=float) == row[:6]
    for level, row in paper_rows(3).items():
        if "-" not in row:
            assert float(row[0][:5]) > float(row[1][:5]) > float(row[2][:5]), level


def test_a_table_shows_the_papers_rows_beside_ours():
    scores = list(evaluate([Halfway()], [CAMERA], [paper_levels()["gaussian 25"]]))
    table = table_of(
        3, [("set12", score) for score in scores], {"halfway": Cost.of(Halfway(), 12.34)}
    )
    assert table.header == ("", *(f"paper: {name}" for name in paper_columns(3)), "halfway")
    by_label = {row[0]: row[1:] for row in table.rows}
    assert by_label["gaussian 25"][:2] == ("30.47/0.8369", "30.36/0.8355")
    assert by_label["gaussian 25"][-1] == f"{scores[0].psnr:.2f}/{scores[0].ssim:.4f}"
    assert by_label["parameters"][-1] == "1"
    assert by_label["G multiplications, 640x480"][-1] == "0.6"
    assert by_label["ms, 512x512, here"][-1] == "12.3"
    assert list(csv.reader(io.StringIO(table.as_csv()))) == [
        list(table.header),
        *map(list, table.rows),
    ]
    assert json.loads(table.as_json())["rows"][-1]["halfway"] == by_label["gaussian 25"][-1]
    assert table.as_markdown().count("\n| ") == 2 + len(table.rows)


# Figures


def test_figure_8_has_a_curve_for_each_codec(pictures, tmp_path):
    arguments = [
        "evaluate",
        "--data",
        str(pictures),
        "--figure",
        "8",
        "--model",
        "dn-fast",
        "--limit",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    rows = list(
        csv.DictReader(
            io.StringIO((tmp_path / "out" / "figure-8-pictures.csv").read_text(encoding="utf-8"))
        )
    )
    for codec in codecs():
        mine = [row for row in rows if row["codec"] == codec]
        rates, scores = (
            [float(row[key]) for row in mine] for key in ("bits_per_pixel", "psnr_decoded")
        )
        assert len(mine) >= 6
        assert rates == sorted(rates)
        assert scores == sorted(scores)
        assert all(float(row["psnr_dn-fast"]) > 15 for row in mine)
    with Image.open(tmp_path / "out" / "figure-8-pictures.png") as picture:
        assert picture.width > picture.height > 300


def test_figure_6_shows_every_method_between_noisy_and_clean(pictures, tmp_path):
    arguments = [
        "evaluate",
        "--data",
        str(pictures),
        "--figure",
        "6",
        "--model",
        "dn-fast",
        "--model",
        "dn-resnet-13",
    ]
    result = CliRunner().invoke(
        app, [*arguments, "--level", "poisson 8", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "out" / "figure-6-pictures.png") as picture:
        assert picture.width / picture.height == pytest.approx(
            4 * 2.2 / (2 * 2.4), rel=0.02
        )  # four columns, a row for each image


# The command


def test_the_command_prints_and_writes_a_table(pictures, tmp_path):
    arguments = [
        "evaluate",
        "--data",
        str(pictures),
        "--table",
        "3",
        "--model",
        "dn-fast",
        "--level",
        "gaussian 25",
    ]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert "| gaussian 25 | 30.47/0.8369 | 30.36/0.8355 |" in result.stdout
    assert "Ours on pictures (2 images)." in result.stdout
    written = {
        path.suffix: path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()
    }
    assert written[".md"] == result.stdout
    assert set(written) == {".md", ".csv", ".json"}


def test_table_5_compares_sets_by_name(pictures):
    pictures = pictures.rename(pictures.with_name("set14"))
    result = CliRunner().invoke(
        app, ["evaluate", "--data", str(pictures), "--table", "5", "--model", "dn-fast"]
    )
    assert result.exit_code == 0, result.stderr
    assert "| gaussian 50 | 26.99/0.7794 | 27.05/0.7788 |" in result.stdout
    assert "| poisson 8 | 25.14/0.7198 | - |" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--figure", "7", "--out", "."], "--figure must be 6 or 8, got 7"),
        (["--figure", "8"], "Add --out"),
        (["--level", "fog 7"], "got 'fog 7'. Change --level"),
        (["--model", "dn-fsat"], "Did you mean dn-fast"),
        (["--model", "dn-fast", "--model", "dn-fast"], "got two of the same name"),
        (["--baseline", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_what_cannot_be_measured_is_explained(options, words, pictures):
    result = CliRunner().invoke(app, ["evaluate", "--data", str(pictures), *options])
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_without_images_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert str(tmp_path) in result.stderr
