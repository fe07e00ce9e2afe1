"""The rules of the project, read from the sources: imports, public names, what is never done."""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src"
PACKAGE = SOURCES / "dn_core"

# Each part of the library with the floor that it stands on: a module imports from its own part,
# from floors below and, without going round in circles, from other parts of its own floor.
FLOORS = [
    [
        "comparison",
        "compression",
        "errors",
        "files",
        "inference.tiling",
        "losses",
        "locks",
        "memory",
        "messages",
        "network_config",
        "networks",
        "noise",
        "processes",
        "safe_write",
        "validation",
    ],
    ["checkpoints", "tensor_files"],
    ["files.grey", "inference", "models", "training"],
    ["paper"],
    ["cli", "demo", "json_lines"],
]
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}

# The ground floor imports nothing of the library but this, so that each of its modules can be read
# and tested alone.
GROUND = {part: {part} for part in FLOORS[0]}
GROUND["comparison"] |= {"safe_write"}
GROUND["files"] |= {"errors", "messages", "safe_write"}
GROUND["validation"] |= {"messages"}
GROUND["network_config"] |= {"validation"}
GROUND["noise"] |= {"compression", "validation"}
GROUND["networks"] |= {"network_config", "processes"}
CHECKPOINTS = {
    "checkpoints",
    "errors",
    "network_config",
    "networks",
    "safe_write",
    "tensor_files",
    "validation",
}

FOREIGN = {
    "magicgui",
    "napari",
    "npe2",
    "qtpy",
    "superqt",
    "PyQt5",
    "PyQt6",
    "PySide2",
    "PySide6",
    "ray",
}
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
}
HEAVY = {"dask", "openvino", "skimage", "tifffile", "torch", "typer", "zarr"}

MAX_BUNDLED_BYTES = 20_000_000  # what a user downloads with every release


def module_name(path: Path) -> str:
    """`inference.tiling` for inference/tiling.py, `inference` for its package, "" at the top."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Packages that import lazily: their stub files say what they export.
STUBS = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for path in PACKAGE.rglob("__init__.pyi")
}
IS_PACKAGE = {module_name(path) for path in PACKAGE.rglob("__init__.py")}


def part_of(module: str) -> str:
    return module if module in FLOOR_OF else module.split(".")[0]


def imported_names(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names of all that these nodes import, absolute; `from a import b` gives a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["dn_core", *module.split(".")] if module else ["dn_core"]
                up = node.level - (module in IS_PACKAGE)
                base = ".".join([*here[: len(here) - up], *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_modules(names: Iterator[str]) -> set[str]:
    """Modules of the library among imported names: dn_core.noise.Gaussian is the module noise."""
    found = set()
    for name in names:
        first, *rest = name.split(".")
        if first == "dn_core" and rest != ["__version__"]:
            while rest and ".".join(rest) not in TREES:
                rest.pop()
            found.add(".".join(rest))
    return found


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run at import: not those in functions or for type checkers only."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from at_import(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from at_import(handler.body)


def dotted(node: ast.AST) -> str:
    """`torch.load` for that expression, "" for others; `network.eval` thus is not `eval`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


@pytest.mark.parametrize("module", [module for module in TREES if module])
def test_every_module_has_its_place(module: str) -> None:
    assert part_of(module) in FLOOR_OF, f"say in FLOORS where {module} stands"


@pytest.mark.parametrize("module", [module for module in TREES if module])
def test_imports_point_down(module: str) -> None:
    part = part_of(module)
    for other in own_modules(imported_names(module, ast.walk(TREES[module]))) - {module}:
        assert other, f"{module} imports the front door; it is for users, import the module itself"
        other_part = part_of(other)
        assert other_part in FLOOR_OF, f"say in FLOORS where {other} stands"
        if part in GROUND:
            assert other_part in GROUND[part], (
                f"{module} is on the ground floor and imports {other}"
            )
        elif part == "checkpoints":
            assert other_part in CHECKPOINTS, f"checkpoints imports {other}"
        else:
            assert FLOOR_OF[other_part] <= FLOOR_OF[part], (
                f"{module} imports {other}, which stands above it"
            )


# Beyond floors: what a part, or a module of one, does without.
APART = {
    "inference": {"training"},
    "models": {"inference", "training"},
    "paper": {"training"},
    "training.trainer": {"models"},  # a network comes to it ready, from whoever looked it up
}


@pytest.mark.parametrize("place", APART)
def test_some_parts_do_without_others(place: str) -> None:
    modules = [module for module in TREES if f"{module}.".startswith(f"{place}.")]
    assert modules, f"there is no {place} any more"
    for module in modules:
        others = own_modules(imported_names(module, ast.walk(TREES[module])))
        assert not {other.split(".")[0] for other in others} & APART[place], module


PLUGIN = sorted((ROOT / "napari_dnresnet").glob("*.py"))
BINDINGS = {"PyQt5", "PyQt6", "PySide2", "PySide6"}


@pytest.mark.parametrize("path", PLUGIN, ids=lambda path: path.stem)
def test_the_plugin_stays_in_its_place(path: Path) -> None:
    """Neither Ray nor a binding of Qt; what is heavy is imported where it is used."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name in imported_names("", ast.walk(tree))} & {
        "ray",
        *BINDINGS,
    }
    assert not {name.split(".")[0] for name in imported_names("", at_import(tree.body))} & {
        "dn_core",
        "napari",
        *HEAVY,
    }
    assert exported(tree) is not None or only_a_docstring(tree), "__all__ is missing"


def test_no_module_needs_itself_to_be_imported() -> None:
    graph = {
        module: own_modules(imported_names(module, at_import(tree.body))) - {module}
        for module, tree in TREES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", TREES)
def test_the_library_knows_neither_napari_nor_qt_nor_ray(module: str) -> None:
    assert (
        not {name.split(".")[0] for name in imported_names(module, ast.walk(TREES[module]))}
        & FOREIGN
    )


@pytest.mark.parametrize(
    "path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.relative_to(SOURCES).as_posix()
)
def test_nothing_runs_code_from_files(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(imported_names("", ast.walk(tree)))
    assert not {name.split(".")[0] for name in names} & UNSAFE_MODULES
    assert not names & UNSAFE_CALLS
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert dotted(node.func) not in UNSAFE_CALLS, f"line {node.lineno}"
            for keyword in node.keywords:
                unsafe = keyword.arg == "allow_pickle" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                )
                assert not unsafe, f"line {node.lineno}: allow_pickle"


@pytest.mark.parametrize(
    "path",
    sorted([*SOURCES.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]),
    ids=lambda path: path.stem,
)
def test_openvino_is_imported_in_one_place(path: Path) -> None:
    """`import_openvino` does it, without the telemetry that OpenVINO would start."""
    names = imported_names("", ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    assert "openvino" not in {name.split(".")[0] for name in names}, (
        "call dn_core.inference.engines.import_openvino"
    )


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def is_command(node: ast.stmt) -> bool:
    """Functions that the command line registers are reached through it, not by name."""
    decorators = getattr(node, "decorator_list", [])
    return any(
        isinstance(item, ast.Call) and dotted(item.func).endswith((".command", ".callback"))
        for item in decorators
    )


def definitions(module: str) -> tuple[set[str], set[str]]:
    """Public classes and functions of a module; its other names."""
    functions, others = set(), set()
    for node in TREES[module].body:
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not is_command(node)
        ):
            functions.add(node.name)
        for target in (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        ):
            others |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    return functions, others


def is_public(module: str) -> bool:
    return not any(name.startswith("_") for name in module.split("."))


def only_a_docstring(tree: ast.Module) -> bool:
    return all(isinstance(node, ast.Expr) for node in tree.body)


PUBLIC = [module for module in TREES if module and is_public(module)]


@pytest.mark.parametrize(
    "module", [module for module in PUBLIC if not only_a_docstring(TREES[module])]
)
def test_all_names_what_a_module_defines_for_others(module: str) -> None:
    """All classes and functions without an underscore; constants as the author likes."""
    tree = STUBS.get(module, TREES[module])
    names = exported(tree)
    assert names is not None, "__all__ is missing"
    assert len(names) == len(set(names))
    functions, constants = definitions(module)
    passed_on = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for origin in own_modules(imported_names(module, iter([node]))):
                passed_on |= {alias.name for alias in node.names} & set.union(*definitions(origin))
    assert functions - set(names) == set(), (
        "public by name and missing in __all__: add it, or begin its name with _"
    )
    assert set(names) - functions - constants - passed_on == set(), (
        "in __all__, and neither defined here nor where it is imported from"
    )


def test_the_front_door_has_all_that_it_names() -> None:
    import dn_core

    assert [name for name in dn_core.__all__ if not hasattr(dn_core, name)] == []
    assert set(dn_core.__all__) <= set(dir(dn_core))
    with pytest.raises(AttributeError, match="denoize"):
        dn_core.denoize  # noqa: B018


@pytest.mark.parametrize("module", STUBS)
def test_a_stub_names_what_its_package_exports(module: str) -> None:
    package = importlib.import_module(f"dn_core.{module}".rstrip("."))
    imported = {
        alias.name: f"{package.__name__}.{node.module}"
        for node in STUBS[module].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = exported(STUBS[module])
    assert names == sorted(names), "sort __all__ of the stub"
    assert set(names) == set(package.__all__) == {*imported, *(() if module else ["__version__"])}
    for name, home in imported.items():
        assert getattr(package, name).__module__ == home, "import it from where it is defined"
        assert name not in IS_PACKAGE | TREES.keys(), f"{name} is a module too"
        assert f"{module}.{name}" not in TREES, f"{name} hides the module of that name"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is in the extra 'dev'")
def test_editors_see_that_the_same_kind_of_array_comes_back(tmp_path) -> None:
    """What a type checker reads in the stub: numpy in gives numpy out, dask in gives dask out."""
    script = tmp_path / "script.py"
    script.write_text(
        "import dask.array as da\n"
        "import dn_core\n"
        "import numpy as np\n"
        "lazy = da.Array({}, '', ())\n"
        "reveal_type(dn_core.denoise(np.zeros((64, 64), np.uint8)))\n"
        "reveal_type(dn_core.denoise(lazy))\n"
        "reveal_type(dn_core.load_model()(np.zeros((64, 64), np.uint8)))\n"
        "dn_core.denoise(np.zeros((64, 64)), sigmma=1)\n"
    )
    options = ["--config-file=", f"--cache-dir={tmp_path / 'cache'}", "--follow-imports=silent"]
    output = subprocess.run(
        [sys.executable, "-m", "mypy", "--ignore-missing-imports", *options, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(SOURCES)},
        check=False,
    ).stdout
    kinds = re.findall(r'Revealed type is "([\w.]+)', output)
    assert [kind.split(".")[-1] for kind in kinds] == ["ndarray", "Array", "ndarray"], output
    assert 'Unexpected keyword argument "sigmma"' in output


def test_the_front_door_opens_without_other_packages() -> None:
    program = (
        "import json, sys; before = set(sys.modules); import dn_core; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "tests",
    ).stdout
    loaded = {name.split(".")[0] for name in json.loads(output)}
    assert not loaded & HEAVY
    assert loaded - sys.stdlib_module_names == {"dn_core", "lazy_loader"}


def test_the_version_is_the_same_everywhere() -> None:
    import dn_core

    assert dn_core.__version__ == project()["version"]


def test_the_changelog_names_the_version() -> None:
    assert f"## [{project()['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_pin_every_dependency() -> None:
    wanted = [
        *project()["dependencies"],
        *(line for extra in project()["optional-dependencies"].values() for line in extra),
    ]
    assert {canonical(line) for line in wanted} <= constraints().keys()


def test_constraints_name_versions_and_nothing_else() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line), line


def test_pre_commit_uses_the_same_ruff() -> None:
    assert f'"ruff=={constraints()["ruff"]}"' in (ROOT / ".pre-commit-config.yaml").read_text(
        encoding="utf-8"
    )


def test_dependencies_have_no_upper_bounds() -> None:
    """An upper bound keeps a plugin from being installed beside others."""
    assert [
        line for line in project()["dependencies"] if re.search(r"[<~]|==", line.split(";")[0])
    ] == []


def test_bundled_models_are_small_together() -> None:
    assert (
        sum(path.stat().st_size for path in (PACKAGE / "models").glob("*.safetensors"))
        < MAX_BUNDLED_BYTES
    )


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("*/recipes/*.toml")), ids=lambda path: path.stem
)
def test_recipes_are_toml(path: Path) -> None:
    assert tomllib.loads(path.read_text(encoding="utf-8"))


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("module", PUBLIC)
def test_every_module_can_be_imported_alone(module: str) -> None:
    assert importlib.import_module(f"dn_core.{module}").__doc__


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def canonical(requirement: str) -> str:
    """`scikit-image` for "scikit_image[data]>=0.24; ..."."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9_.-]+", requirement)[0]).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonical(line): line.split("==")[1] for line in lines if "==" in line}
