"""The documents are true: links lead somewhere, commands and options are there, examples run."""

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
if not DOCS.exists():
    pytest.skip("the documents are not part of this source distribution", allow_module_level=True)

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / name / "README.md" for name in ("benchmarks", "distributed")),
        *sorted(DOCS.rglob("*.md")),
    ]
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PUBLIC = {"dn_core"} | {
    f"dn_core.{name}" for name in ("files", "models", "networks", "noise", "training")
}
RUN = ("README.md", "docs/index.md", "docs/denoising.md")


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", PAGES[page])


def snippets(page: str) -> list[str]:
    return [code for language, code in FENCE.findall(PAGES[page]) if language == "python"]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the repository's site and MyST make them."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", prose(page)):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), target
        assert ROOT in path.parents, f"{target} lies outside the repository"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_every_page_is_reached_from_the_start_page() -> None:
    reached, waiting = set(), ["docs/index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        toctree = re.findall(
            r"^```\{toctree\}\n(?::\w+:.*\n)*\n(.*?)^```", PAGES[page], re.M | re.S
        )
        for name in "\n".join(toctree).split():
            waiting.append(((ROOT / page).parent / name).relative_to(ROOT).as_posix() + ".md")
    assert reached == {page for page in PAGES if page.startswith("docs/")}


def lines_of_code(page: str) -> Iterator[str]:
    """Lines of code blocks and code in the text; lines that end in a backslash are joined."""
    for language, block in FENCE.findall(PAGES[page]):
        if language != "python":
            yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", prose(page))


def words(line: str) -> list[str]:
    """A command's words, without the remark after it."""
    return shlex.split(re.split(r"\s{2,}|\s#", line.strip())[0].rstrip(" ."))


def every_option(command) -> set[str]:
    found = {option for parameter in command.params for option in parameter.opts}
    return found.union(
        *(every_option(inner) for inner in getattr(command, "commands", {}).values())
    )


def options(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]


@pytest.fixture(scope="module")
def command():
    import typer.main

    from dn_core.cli import app

    return typer.main.get_command(app)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_commands_and_options_are_there(page: str, command) -> None:
    for line in lines_of_code(page):
        found = re.search(r"(?:^|\s)(dn-resnet [a-z].*)", line)
        if not found:
            continue
        _, *rest = words(found[1])
        used = command
        while rest and hasattr(used, "commands"):
            name = rest.pop(0)
            assert name in used.commands, line
            used = used.commands[name]
        known = {option for parameter in used.params for option in parameter.opts} | {"--help"}
        assert set(options(rest)) <= known, line


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_options_named_in_the_text_are_there(page: str, command) -> None:
    known = every_option(command)
    scripts = [
        path for name in ("benchmarks", "distributed") for path in (ROOT / name).rglob("*.py")
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in scripts)
    for option in re.findall(r"`(--[a-z-]+)", prose(page)):
        assert option in known or option in text or option[2:].replace("-", "_") in text, option


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_scripts_and_their_options_are_there(page: str) -> None:
    for line in lines_of_code(page):
        found = re.search(r"python3? ((?:benchmarks|distributed|docs)/\w+\.py|dev\.py)(.*)", line)
        if not found:
            continue
        script, rest = ROOT / found[1], words(f"x {found[2]}")
        assert script.exists(), line
        sources = [script, *(script.parent.glob("*/*.py") if script.name != "dev.py" else ())]
        text = "".join(path.read_text(encoding="utf-8") for path in sources)
        for option in options(rest):
            name = option.lstrip("-").replace("-", "_")
            assert option in text or re.search(rf"\b{name}\b", text), f"{option} in {line}"


@pytest.mark.parametrize("page", PAGES)
def test_examples_use_the_public_interface(page: str) -> None:
    """Modules that are documented, names that they have, arguments that they take."""
    for code in snippets(page):
        names = {"dn_core": "dn_core"}
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dn_core"):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    assert node.module in PUBLIC or full in PUBLIC, full
                    names[alias.asname or alias.name] = full
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call):
                first, *rest = ast.unparse(node.func).split(".")
                if first in names and not any(keyword.arg is None for keyword in node.keywords):
                    keywords = {keyword.arg: None for keyword in node.keywords}
                    function = resolved(".".join([names[first], *rest]))
                    inspect.signature(function).bind(*node.args, **keywords)


def resolved(name: str) -> object:
    """The object of a dotted name; what is not in a module's `__all__` is not public."""
    parts = name.split(".")
    module = ".".join(parts[:2]) if ".".join(parts[:2]) in PUBLIC else parts[0]
    value = importlib.import_module(module)
    first, *rest = name.removeprefix(f"{module}.").split(".")
    assert first in value.__all__, f"{name} is not public"
    value = getattr(value, first)
    for part in rest:
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("page", RUN)
def test_examples_run(page: str, tmp_path, monkeypatch) -> None:
    from dn_core.files import ImageFile, create_image

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, (48, 64)).astype(np.uint8)
    stack = rng.normal(1000, 50, (2, 3, 48, 64)).astype(np.uint16)
    rng.normal(1000, 50, (8, 512, 512)).astype(np.uint16).tofile("large.raw")
    like = ImageFile(tmp_path / "memory", image, "YX", "tiff")
    with create_image("noisy.ome.tif", like) as target:
        target[:] = image
    namespace = {"image": image, "stack": stack}
    for code in snippets(page):
        exec(compile(code, page, "exec"), namespace)
    assert namespace["clean"].shape == namespace["stack" if page == "README.md" else "image"].shape


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path) -> None:
    import dn_core

    pytest.importorskip("sphinx", reason="Sphinx is in the extra 'docs'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name in PUBLIC:
        module = importlib.import_module(name)
        page = tmp_path / "api" / f"{name.removeprefix('dn_core.')}.html"
        described = set(re.findall(r'id="([\w.]+)"', page.read_text(encoding="utf-8")))
        names = set(module.__all__) - (set(dn_core.__all__) if name != "dn_core" else set())
        wanted = {f"{name}.{item}" for item in names if callable(getattr(module, item))}
        assert wanted <= described, f"{page.name} lacks {wanted - described}"
