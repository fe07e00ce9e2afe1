"""Which images folders, links and patterns stand for; results keep the folders of the inputs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from dn_core import files
from dn_core.cli import app

IMAGE = np.random.default_rng(0).normal(300, 30, (20, 24)).clip(0).astype(np.uint16)
links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def save(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, IMAGE)


def listed(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def denoised(tmp_path, *inputs, output="out"):
    result = invoke("denoise", *inputs, "-o", tmp_path / output)
    assert result.exit_code == 0, result.stderr
    return listed(tmp_path / output)


@links
def test_a_linked_folder_is_followed(tmp_path):
    save(tmp_path / "in" / "real.tif", tmp_path / "store" / "linked.tif")
    (tmp_path / "in" / "l").symlink_to("../store")
    assert denoised(tmp_path, tmp_path / "in") == ["l/linked.tif", "real.tif"]


@links
def test_links_that_lead_round_in_circles_and_to_the_same_place_give_each_image_once(tmp_path):
    save(
        tmp_path / "in" / "z" / "a.tif",
        tmp_path / "store" / "b.tif",
        tmp_path / "store" / "deep" / "c.tif",
    )
    (tmp_path / "in" / "round").symlink_to(".")
    (tmp_path / "in" / "again").symlink_to("z")
    (tmp_path / "in" / "one").symlink_to("../store")
    (tmp_path / "in" / "two").symlink_to("../store")
    (tmp_path / "store" / "back").symlink_to("../in")
    (tmp_path / "in" / "same.tif").symlink_to("z/a.tif")
    expected = [tmp_path / "in" / name for name in ("one/b.tif", "one/deep/c.tif", "z/a.tif")]
    assert files.image_paths([tmp_path / "in"]) == expected
    assert files.image_paths([tmp_path / "in" / "**" / "*.tif"]) == expected


@links
def test_a_link_to_nothing_is_said(tmp_path):
    save(tmp_path / "in" / "a.tif")
    (tmp_path / "in" / "b.tif").symlink_to("nowhere.tif")
    result = invoke("denoise", tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "b.tif: there is no image" in result.stderr
    assert listed(tmp_path / "out") == ["a.tif"]


@pytest.mark.parametrize("given", ["in", "in/**/*.tif", "in/*/*.tif", "in/pos*/img.tif"])
def test_folders_inside_go_to_the_same_folders(given, tmp_path):
    save(tmp_path / "in" / "pos1" / "img.tif", tmp_path / "in" / "pos2" / "img.tif")
    assert denoised(tmp_path, tmp_path / given) == ["pos1/img.tif", "pos2/img.tif"]


def test_images_of_one_name_keep_what_tells_their_folders_apart(tmp_path):
    save(
        tmp_path / "day" / "pos1" / "raw" / "img.tif",
        tmp_path / "day" / "pos2" / "raw" / "img.tif",
        tmp_path / "day" / "pos2" / "b.tif",
    )
    inputs = [tmp_path / "day" / "pos1" / "raw" / "img.tif", tmp_path / "day" / "pos2"]
    assert denoised(tmp_path, *inputs) == [
        "b.tif",
        "img.tif",
        "raw/img.tif",
    ]  # the names are different without more
    inputs = [
        tmp_path / "day" / "pos1" / "raw",
        tmp_path / "day" / "pos2" / "raw" / "img.tif",
        tmp_path / "day" / "pos2" / "b.tif",
    ]
    result = invoke("denoise", *inputs, "-o", tmp_path / "out2")
    assert result.exit_code == 0
    assert (
        result.stderr
        == "several inputs have the same name: results go to the same folders as below "
        f"{tmp_path / 'day'}\n"
    )
    assert listed(tmp_path / "out2") == ["pos1/raw/img.tif", "pos2/b.tif", "pos2/raw/img.tif"]


def test_patterns_below_a_folder_with_brackets_in_its_name(tmp_path):
    save(
        tmp_path / "d[1]" / "a.tif", tmp_path / "d[1]" / "e[2]" / "b.tif", tmp_path / "d1" / "c.tif"
    )
    assert denoised(tmp_path, tmp_path / "d[1]" / "*.tif") == ["a.tif"]
    assert denoised(tmp_path, tmp_path / "d[1]" / "**" / "*.tif", output="out/deep") == [
        "a.tif",
        "e[2]/b.tif",
    ]
    assert denoised(tmp_path, tmp_path / "d[1]" / "*" / "b.tif", output="out/middle") == [
        "e[2]/b.tif"
    ]
    assert denoised(tmp_path, tmp_path / "d*" / "e[2]" / "b.tif", output="out/late") == [
        "d[1]/e[2]/b.tif"
    ]
    assert denoised(tmp_path, tmp_path / "d[0-9]" / "*.tif", output="out/pattern") == ["d1/c.tif"]


def test_relative_patterns_give_relative_paths(tmp_path, monkeypatch):
    save(tmp_path / "d[1]" / "a.tif", tmp_path / "b.tif")
    monkeypatch.chdir(tmp_path)
    assert files.image_paths(["d[1]/*.tif", "*.tif"]) == [Path("d[1]/a.tif"), Path("b.tif")]


def test_patterns_never_lead_out_of_the_output_folder(tmp_path):
    save(tmp_path / "a1" / "x.tif", tmp_path / "b1" / "y.tif")
    assert denoised(tmp_path, tmp_path / "a*" / ".." / "b*" / "y.tif") == ["y.tif"]


def test_results_inside_the_input_are_said_to_be_no_inputs(tmp_path):
    save(tmp_path / "in" / "deep" / "a.tif", tmp_path / "in" / "b.tif")
    assert denoised(tmp_path, tmp_path / "in", output="in/out") == ["b.tif", "deep/a.tif"]
    again = invoke("denoise", tmp_path / "in", "-o", tmp_path / "in" / "out", "--overwrite")
    assert again.exit_code == 0
    assert (
        again.stderr
        == f"left out 2 images in {tmp_path / 'in' / 'out'}: results of an earlier run are not "
        "inputs.\n"
    )
    assert listed(tmp_path / "in") == ["b.tif", "deep/a.tif", "out/b.tif", "out/deep/a.tif"]


def test_an_output_folder_around_the_input_takes_the_results(tmp_path, monkeypatch):
    save(tmp_path / "in" / "deep" / "a.tif", tmp_path / "in" / "b.tif")
    monkeypatch.chdir(tmp_path)
    result = invoke("denoise", "in", "-o", ".")
    assert result.exit_code == 0, result.stderr
    assert listed(tmp_path) == ["b.tif", "deep/a.tif", "in/b.tif", "in/deep/a.tif"]


def test_images_of_other_kinds_in_a_folder_are_said_to_be_left_out(tmp_path):
    save(tmp_path / "in" / "a.tif")
    (tmp_path / "in" / "b.czi").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_text("")
    with pytest.warns(UserWarning, match=r"in: skipped 1 file of other formats .* \(b\.czi\)"):
        assert files.image_paths([tmp_path / "in"]) == [tmp_path / "in" / "a.tif"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="every folder may be read"
)
def test_a_folder_that_may_not_be_read_is_said(tmp_path):
    save(tmp_path / "in" / "a.tif", tmp_path / "in" / "closed" / "b.tif")
    (tmp_path / "in" / "closed").chmod(0)
    with pytest.warns(UserWarning, match="closed cannot be read .* skipped"):
        assert files.image_paths([tmp_path / "in"]) == [tmp_path / "in" / "a.tif"]
    (tmp_path / "in" / "closed").chmod(0o700)
