"""The pieces of benchmarks/microscopy.py, and a short run on small images."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


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
def cases():
    return part("micrographs.cases")


def write_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8)).save(path)


def listed_psnr(truth, images):
    mean = np.mean([np.clip(np.rint(image), 0, 255) for image in images], axis=0)
    return float(10 * np.log10(255**2 / np.mean((mean - truth) ** 2)))


@pytest.fixture(scope="module")
def small_data(tmp_path_factory, cases):
    """A data folder as the benchmark wants it, with pieces of one photograph as all its images."""
    folder = tmp_path_factory.mktemp("data") / "test"
    generator = np.random.default_rng(0)
    pieces = [
        data.camera()[top : top + 96, left : left + 96].astype(float)
        for top in range(60, 350, 96)
        for left in range(60, 350, 96)
    ]
    w2s = {}
    for number, truth in enumerate(pieces[:2]):
        matched = 0.5 * truth + 20
        noisy = matched + generator.normal(0, 15, truth.shape)
        write_png(folder / "w2s" / f"081_{number}_avg1.png", noisy)
        write_png(folder / "w2s" / f"081_{number}_avg400.png", truth)
        w2s[f"081_{number}"] = {
            "gain": 0.5,
            "offset": 20,
            "psnr_input_matched": listed_psnr(matched, [noisy]),
        }
    (folder / "w2s" / "w2s.json").write_text(json.dumps({"images_here": w2s}))
    fmd = {}
    for name, truth in zip(cases.FMD_KINDS, pieces, strict=False):
        captures = [truth + generator.normal(0, 20, truth.shape) for _ in range(4)]
        for number, capture in enumerate(captures, 1):
            write_png(folder / "fmd" / f"{name}_raw{number}.png", capture)
        write_png(folder / "fmd" / f"{name}_gt.png", truth)
        fmd[name] = {
            "psnr_raw": [listed_psnr(truth, [capture]) for capture in captures],
            "avg2_captures": [1, 3],
            "psnr_avg2": listed_psnr(truth, [captures[0], captures[2]]),
            "psnr_avg4": listed_psnr(truth, captures),
        }
    (folder / "fmd" / "fmd.json").write_text(json.dumps({"configs": fmd}))
    for kind in ("dsb2018", "set12"):
        for number, truth in enumerate(pieces[7:9]):
            write_png(folder / kind / f"{number}.png", truth)
    return folder.parent


def test_coherence_tells_stripes_from_dots():
    coherence = part("micrographs.measures").coherence
    rows, columns = np.mgrid[:128, :128]
    stripes = np.sin((rows + 2 * columns) / 4)
    dots = np.random.default_rng(0).normal(size=(128, 128))
    assert coherence(stripes) > 0.95
    assert coherence(dots) < 0.5
    assert coherence(np.zeros((64, 64))) == 0


def test_coherence_depends_neither_on_gain_nor_on_offset():
    coherence = part("micrographs.measures").coherence
    image = data.camera()[:128, :128].astype(float)
    assert coherence(0.3 * image + 17) == pytest.approx(coherence(image), rel=1e-9)


@pytest.mark.parametrize(("gain", "read_noise"), [(0.02, 0.01), (0.005, 0.03), (0.1, 0.02)])
def test_gain_and_offset_of_the_noise_are_found_in_the_image(gain, read_noise):
    rows, columns = np.mgrid[:256, :256] / 256
    truth = 0.1 + 0.8 * (0.5 + 0.5 * np.sin(5 * rows) * np.cos(4 * columns))
    generator = np.random.default_rng(0)
    noisy = gain * generator.poisson(truth / gain) + generator.normal(0, read_noise, truth.shape)
    slope, offset = part("micrographs.stabilise").estimate_noise(noisy)
    found, expected = slope * truth + offset, gain * truth + read_noise**2
    np.testing.assert_allclose(found, expected, rtol=0.25)


def test_gaussian_noise_has_no_slope():
    noisy = 0.5 + np.random.default_rng(0).normal(0, 0.1, (256, 256))
    slope, offset = part("micrographs.stabilise").estimate_noise(noisy)
    assert slope * noisy.mean() + offset == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("noise", [(0.05, 0.001), (0.05, -0.002), (0.0, 0.01)])
def test_behind_the_transform_noise_has_a_deviation_of_1_and_means_come_back(noise):
    slope, offset = noise
    seen = []

    def average(stable):
        seen.append(stable)
        return np.full_like(stable, stable.mean())

    generator = np.random.default_rng(0)
    level = 0.8
    if slope:
        pedestal = -offset / slope if offset < 0 else 0.0
        noisy = slope * generator.poisson((level - pedestal) / slope, (256, 256)) + pedestal
        noisy = noisy + generator.normal(0, np.sqrt(max(offset, 0)), noisy.shape)
    else:
        noisy = level + generator.normal(0, np.sqrt(offset), (256, 256))
    result = part("micrographs.stabilise").behind_transform(average, noisy, noise)
    assert seen[0].std() == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(result, level, rtol=0.01)


def test_real_images_are_read_as_their_lists_say(cases, small_data):
    found = {}
    for case in cases.read_cases(small_data, ("W2S", "FMD 1", "FMD 2", "FMD 4")):
        error = np.mean((case.noisy.astype(float) - case.truth) ** 2)
        found.setdefault(case.collection, {})[case.name] = float(-10 * np.log10(error))
    assert cases.check_real_images(small_data, found) == []
    assert list(found["FMD 1"]) == list(cases.FMD_KINDS.values())
    found["FMD 2"]["fish"] += 1
    (sentence,) = cases.check_real_images(small_data, found)
    assert sentence.startswith("FMD 2, fish:")


def test_photons_have_the_variance_that_is_given(cases, small_data):
    first, again = (cases.read_cases(small_data, ("dsb2018 10",)) for _ in range(2))
    for case, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(case.noisy, same.noisy)
        assert case.truth.max() == 1
        slope, offset = case.noise
        assert offset == pytest.approx((cases.READ_NOISE / 10) ** 2)
        expected = float((slope * case.truth + offset).mean())
        # 9,216 pixels: the variance of a mean of squares is some 2 % of it.
        assert np.mean((case.noisy - case.truth) ** 2) == pytest.approx(expected, rel=0.08)


def test_what_the_data_folder_lacks_is_left_out_and_said(cases, small_data, tmp_path, capsys):
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="must have test/w2s"):
        cases.read_cases(tmp_path)
    shutil.copytree(small_data / "test" / "set12", tmp_path / "test" / "set12")
    assert {case.collection for case in cases.read_cases(tmp_path)} == {
        "Set12 15",
        "Set12 25",
        "Set12 50",
    }
    assert "lacks them: dsb2018, fmd, w2s" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gaussian", "nlm", "tv"])
def test_a_filter_gets_the_strength_that_is_best_for_the_image(cases, small_data, name):
    from dn_core.paper.protocol import psnr

    (case,) = cases.read_cases(small_data, ("Set12 25",), limit=1)
    method = part("micrographs.filters").filter_named(name)
    best, strength = method.best(case)
    for factor in (0.7, 1.4):
        other = method.apply(case.noisy, case.noise, strength * factor)
        assert psnr(case.truth, best) >= psnr(case.truth, other)


def test_what_is_kept_is_not_computed_again(cases, small_data, tmp_path):
    filters, store = part("micrographs.filters"), part("micrographs.store").Store(tmp_path / "kept")
    calls = []

    def halve(image, noise, strength):
        calls.append(strength)
        return image / 2

    method = filters.Filter("halve", "halved", "skimage", None, halve)
    first, second = cases.read_cases(small_data, ("Set12 25",))
    for case in (first, second, first):
        image, _ = store.best(method, case)
        np.testing.assert_array_equal(image, case.noisy / 2)
    assert len(calls) == 2
    store.best(filters.Filter("halve", "halved", "skimage", None, halve, version=2), first)
    assert len(calls) == 3


def test_pictures_show_the_largest_win_and_the_largest_loss(cases, tmp_path):
    pictures = part("micrographs.pictures")
    truth = np.full((300, 400), 0.5, np.float32)
    ours, other = truth + 0.01, truth + 0.01
    other[:88, :88] += 0.2
    ours[-88:, -88:] += 0.1
    case = cases.Case("W2S", "made up", truth, truth)
    win, loss = pictures.extremes([case], [ours], [other])
    assert (win.top, win.left) == (0, 0)
    assert (loss.top, loss.left) == (300 - 88, 400 - 88)
    assert win.difference > 20 > 0 > loss.difference
    rows = [("win", win, {"ours": ours, "other": other}), ("loss", loss, {"ours": ours})]
    pictures.write_sheet(tmp_path / "sheet.png", rows)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 3 * (2 * 88 + 4) - 4


def test_images_smaller_than_a_crop_have_no_picture(cases):
    truth = np.zeros((40, 400), np.float32)
    case = cases.Case("W2S", "small", truth, truth)
    with pytest.raises(ValueError, match="at least 88x88 pixels, got"):
        part("micrographs.pictures").extremes([case], [truth], [truth])


def made_up_record(**changed):
    """Scores of two models, of which dn-fast reaches all but what is changed."""
    reached = {"FMD 1": 35.0, "W2S": 34.7, "dsb2018": 30.0, "Set12 15": 32.5}
    reached |= {"Set12 25": 30.3, "Set12 50": 27.1} | changed
    cases = part("micrographs.cases")
    names = ["W2S", "FMD 1", *(f"dsb2018 {count:g}" for count in cases.COUNTS)]
    scores = {}
    for name in [*names, "Set12 15", "Set12 25", "Set12 50"]:
        psnr = reached.get(name, reached["dsb2018"])
        own = {"psnr": [psnr], "excess": [changed.get("excess", 0.08)]}
        better = {"psnr": [psnr + 0.4], "excess": [0.2]}
        rivals = {rival: {"psnr": [29.9]} for rival in ("gaussian", "nlm", "bm3d")}
        scores[name] = {"images": ["one"], "dn-fast": own, "dn-quality": better, **rivals}
    return {"scores": scores, "models": {"dn-fast": {}, "dn-quality": {}}}


def test_the_check_says_what_is_reached_and_what_is_not():
    check = part("micrographs.musts").check
    text, missed = check(made_up_record())
    assert missed == []
    row = next(line for line in text.splitlines() if line.startswith("| dn-fast"))
    assert "FAIL" not in row
    assert "0.200 FAIL" in text  # dn-quality's coherence; another model reaches it
    _, missed = check(made_up_record(excess=0.12))
    assert missed == ["W2S, coherence excess must be at most 0.085: the best is 0.120."]
    _, missed = check(made_up_record(**{"Set12 25": 30.20}))
    assert missed == ["Set12, 25 of dn-fast must be at least 30.21: the best is 30.20."]
    record = made_up_record()
    del record["scores"]["W2S"]
    assert "W2S must be at least 34.6: not measured." in check(record)[1]


def test_differences_to_a_rival_are_put_into_words():
    record = made_up_record(dsb2018=29.0)
    lines = part("micrographs.tables").in_short(record["scores"], ["dn-fast"])
    assert "dsb2018 at 10 photons (-0.9 dB)" in lines[0]
    assert "Set12 at sigma 50 (" in lines[0]
    assert "FMD" not in lines[0]
    assert "W2S" not in lines[0]


@pytest.mark.slow
def test_a_short_run_fills_the_page_and_the_check_reads_its_record(
    small_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(str(FOLDER))  # as for a script: speed is measured in a new process
    page, record = tmp_path / "microscopy.md", tmp_path / "results" / "microscopy.json"
    shutil.copy(ROOT / "docs" / "microscopy.md", page)
    places = ["--page", str(page), "--json", str(record), "--picture", str(tmp_path / "p.png")]
    options = ["--data", str(small_data), "--models", "dn-fast", "--limit", "1", *places]
    main = part("microscopy").main
    assert main([*options, "--parts", "quality,pictures", "--cache", str(tmp_path / "kept")]) == 0
    text = page.read_text("utf-8")
    assert "| dn-fast - best Gaussian |" in text
    assert str(tmp_path) not in text + record.read_text("utf-8")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.height > 6 * 2 * 88  # a win and a loss of three collections
    figures = json.loads(record.read_text("utf-8"))
    psnrs = {name: figures["scores"]["FMD 1"][name]["psnr"] for name in ("noisy", "dn-fast")}
    assert psnrs["dn-fast"] > psnrs["noisy"]
    capsys.readouterr()
    assert main([*options, "--check"]) == 1  # photographs are no microscope's images
    assert "| dn-fast |" in capsys.readouterr().out
    assert main([*options, "--parts", "speed"]) == 0
    assert json.loads(record.read_text("utf-8"))["scores"] == figures["scores"]
    assert "| dn-fast |" in page.read_text("utf-8").partition("<!-- speed: begin -->")[2]
    options[options.index("dn-fast")] = "dn-quality"
    with pytest.raises(
        ValueError, match="must be of the same models to add parts to it, got dn-fa"
    ):
        main([*options, "--parts", "speed"])


@pytest.mark.slow
def test_two_models_are_compared_by_kind_and_in_a_sheet(small_data, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    options = ["--before", "dn-fast", "--after", "dn-quality", "--sheet", str(sheet)]
    assert part("microscopy").main(["--data", str(small_data), "--limit", "1", *options]) == 0
    out = capsys.readouterr().out
    assert "| images | before: dn-fast | after: dn-quality | dB |" in out
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_options_that_do_not_fit_are_said(capsys):
    read = part("microscopy").read_options
    for options, sentence in (
        (["--parts", "quality,colour"], "--parts has ['colour']"),
        (["--before", "dn-fast"], "--before and --after are given together"),
        (["--limit", "0"], "--limit is 0; 1 or more is expected"),
    ):
        with pytest.raises(SystemExit):
            read(options)
        assert sentence in capsys.readouterr().err
