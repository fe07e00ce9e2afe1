"""The pieces of the benchmarks, and a short run of compare.py."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dn_core.paper.baselines import BaselineMethod

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def part(name):
    """A module of the benchmarks, which are scripts and not installed."""
    if not FOLDER.exists():
        pytest.skip("the benchmarks are not part of this source distribution")
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def methods():
    return part("comparison.methods")


@pytest.fixture(scope="module")
def baselines(methods, data_folder):
    if not (data_folder / "peers" / "peers.json").exists():
        pytest.skip(f"no baselines in {data_folder}")
    return methods.load_baselines(data_folder / "peers")


@pytest.mark.parametrize("read_noise", [0.0, 1.0, 12.0])
def test_the_inverse_anscombe_transform_gives_high_counts_back(methods, read_noise):
    counts = np.linspace(500, 5000, 50)
    back = methods.inverse_anscombe(methods.anscombe(counts, read_noise), read_noise)
    # Unbiased for the mean of transformed noisy counts, so it lies a quarter above the count
    # itself.
    np.testing.assert_allclose(back, counts + 0.25, atol=0.02)


def test_the_inverse_anscombe_transform_is_unbiased_at_low_counts(methods):
    generator = np.random.default_rng(0)
    for mean in (0.5, 1.0, 4.0):
        values = methods.anscombe(generator.poisson(mean, 400_000).astype(float), 0.0)
        assert float(methods.inverse_anscombe(values.mean(), 0.0)) == pytest.approx(mean, abs=0.03)


@pytest.mark.parametrize("read_noise", [0.0, 2.0])
def test_the_anscombe_transform_makes_the_noise_white(methods, read_noise):
    generator = np.random.default_rng(0)
    counts = generator.poisson(20, 100_000) + generator.normal(0, read_noise, 100_000)
    assert methods.anscombe(counts, read_noise).std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", ["dncnn_s25", "ffdnet_gray"])
def test_peers_are_the_same_in_torch_and_openvino(methods, baselines, name):
    pytest.importorskip("openvino")
    noisy = np.random.default_rng(0).random((24, 32), np.float32)
    by_torch = BaselineMethod(baselines[name])(noisy, 25 / 255)
    by_openvino = methods.baseline_in_openvino(baselines[name], noisy.shape, "f32")(noisy, 25 / 255)
    assert by_torch.shape == noisy.shape
    np.testing.assert_allclose(by_openvino, by_torch, atol=1e-4)


def test_peers_have_the_weights_that_their_list_says(methods, baselines, data_folder):
    listed = methods.baseline_facts(data_folder / "peers")
    assert {name: baseline.parameters for name, baseline in baselines.items()} == {
        name: facts["params"] for name, facts in listed.items()
    }


def test_ffdnet_takes_odd_sides(methods, baselines):
    noisy = np.random.default_rng(0).random((9, 11), np.float32)
    assert BaselineMethod(baselines["ffdnet_gray"])(noisy, 0.1).shape == (9, 11)


def test_set14_noise_is_the_same_each_time(methods):
    images = [np.full((8, 8), 0.5, np.float32)] * 2
    level = methods.Level(10, 1)
    first, second = level.noisy(images), level.noisy(images)
    assert level.name == "1/10"
    np.testing.assert_array_equal(first[1][0], second[1][0])
    assert not np.array_equal(first[0][0], first[1][0])


def test_the_ladder_has_all_that_was_timed_and_scored_with_its_fastest_time(tmp_path):
    times = [
        ("dn-fast", 80.0),
        ("dn-fast", 160.0),
        ("dncnn_s25", 2500.0),
        ("dncnn_s25", 600.0),
        ("TV", 160.0),
        ("untold", 1.0),
    ]
    psnrs = {"dn-fast": 29.9, "DnCNN-S": 30.4, "TV": 28.0, "noisy": 20.2}
    results = {
        "machine": {"cores": 2},
        "speed": [{"name": name, "median_ms": median} for name, median in times],
        "quality": {
            "set12": {name: {"25": {"psnr": value}} for name, value in psnrs.items()},
            "bfloat16": {"dn-fast": {}},
        },
    }
    ladder = part("comparison.ladder")
    assert ladder.rungs(results) == [
        ("dn-fast", 80.0, 29.9, True),
        ("DnCNN-S", 600.0, 30.4, False),
        ("TV", 160.0, 28.0, False),
    ]
    ladder.draw_ladder(results, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_and_denoising_are_timed_on_a_device(tmp_path, capsys, monkeypatch):
    for number in range(2):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (100, 100), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    monkeypatch.setattr(
        "sys.argv", ["gpu.py", "--photos", str(tmp_path), "--device", "cpu", "--quick"]
    )
    part("gpu").main()
    rows = [
        line.split("|")[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| d")
    ]
    assert len(rows) == 10
    assert all(float(row[2]) > 0 for row in rows)
    assert all(
        float(row[-1]) <= 2 for row in rows[4:]
    )  # grey levels: 8-bit images are computed in bfloat16 where the CPU has it


@pytest.mark.slow
def test_a_short_run_writes_the_page(baselines, data_folder, tmp_path, capsys):
    page, figures = tmp_path / "docs" / "benchmarks.md", tmp_path / "figures.json"
    options = [
        "--data",
        str(data_folder),
        "--quick",
        "--parts",
        "quality",
        "--limit",
        "2",
        "--output",
        str(page),
        "--json",
        str(figures),
    ]
    assert part("compare").main(options) == 0
    text = page.read_text("utf-8")
    found = json.loads(figures.read_text("utf-8"))["quality"]
    assert "| BM3D (published) | 32.37 / - |" in text
    assert "[GPUs](gpu.md)" in text
    assert str(data_folder) not in text
    assert str(tmp_path) not in text
    for row in found["baselines"]:
        assert row["measured"] == pytest.approx(
            row["expected"], abs=part("comparison.quality").TOLERANCE
        ), row
    assert "figures are reproduced" in capsys.readouterr().out
    again = [*options[:2], "--parts", "cold", "--earlier", str(figures), "--output", str(page)]
    assert part("compare").main(again) == 0
    assert "--parts cold --earlier JSON`" in page.read_text("utf-8")
    assert "**A short run" in page.read_text("utf-8")  # the earlier one was
    assert "on the same machine: quality" in page.read_text("utf-8")
    assert "| BM3D (published) | 32.37 / - |" in page.read_text("utf-8")
    changed = json.loads(figures.read_text("utf-8"))
    changed["machine"]["cpu"] = "another"
    figures.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="is of cpu another"):
        part("compare").main(again)


@pytest.fixture
def photos(tmp_path):
    """A folder of photographs, and a page with the marks of each table."""
    pixels = data.camera()
    for number in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels[100 * number : 100 * number + 96, :112]).save(
            tmp_path / "photos" / f"{number}.png"
        )
    page = tmp_path / "page.md"
    page.write_text(
        "".join(
            f"<!-- {name}: begin -->\nold\n<!-- {name}: end -->\n" for name in ("layers", "claims")
        )
    )
    return tmp_path / "photos"


def run_script(name, photos, *more):
    """Run a benchmark on tiny images; the rows that it has put into the page."""
    part("page")
    page, out = photos.parent / "page.md", photos.parent / name
    command = [
        sys.executable,
        FOLDER / f"{name}.py",
        "--photos",
        photos,
        "--test",
        photos,
        "--out",
        out,
        "--page",
        page,
        *more,
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = (
        page.read_text("utf-8")
        .partition(f"<!-- {name}: begin -->")[2]
        .partition(f"<!-- {name}: end -->")[0]
    )
    return [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in rows.splitlines()
        if row.startswith("|")
    ][2:]


@pytest.mark.slow
def test_each_further_layer_and_blind_training_have_a_row(photos):
    rows = run_script("layers", photos, "--steps", "3", "--processes", "1")
    assert [row[0] for row in rows[:2] + rows[-3:]] == [
        "3 layers",
        "5 layers",
        "13 layers",
        "13 layers, one-shot",
        "13 layers, one-shot, blind",
    ]
    assert [row[1] for row in rows] == [
        "57,184",
        "75,616",
        "94,048",
        "112,480",
        "130,912",
        "149,344",
        "149,344",
        "149,344",
    ]
    assert all(0 < float(row[2]) < 40 for row in rows)
    assert [rows[0][3], rows[-1][3]] == ["29.86", "30.47"]


@pytest.mark.slow
def test_every_claim_has_a_row_against_what_it_is_compared_with(photos):
    rows = run_script("claims", photos, "--seeds", "1", "--steps", "4", "--batch", "1")
    claims = part("claims")
    assert [row[0] for row in rows] == list(claims.TITLES.values())
    scores = {row[0]: float(row[1]) for row in rows}
    for row in rows[1:]:
        assert float(row[5]) == pytest.approx(scores[row[0]] - scores[row[4]], abs=2e-3)
