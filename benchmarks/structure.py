"""How code is structured and documented, by the same rules for any package: prints a table.

``python benchmarks/structure.py src/dn_core+noise+networks SITE/skimage SITE/pooch`` reads the
sources of each folder, runs nothing of them, and leaves tests out. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import ast
import math
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

LONG_FILE = 400  # lines
SKIPPED = re.compile(r"(^|/)(tests?|_vendored|_shared/tester)(/|$)|(^|/)(test_\w+|conftest)\.py$")
Function = ast.FunctionDef | ast.AsyncFunctionDef

# A section that describes arguments: numpydoc's, or Google's; and Sphinx's fields.
NUMPY_SECTION = re.compile(
    r"^[ \t]*(?:Parameters|Other [Pp]arameters|Attributes)[ \t]*\n[ \t]*-{3,}[ \t]*\n"
    r"(.*?)(?=^[ \t]*[A-Z][\w ]+[ \t]*\n[ \t]*-{3,}|\Z)",
    re.MULTILINE | re.DOTALL,
)
GOOGLE_SECTION = re.compile(
    r"^([ \t]*)(?:Args|Arguments|Parameters|Attributes):[ \t]*\n((?:\1[ \t]+.*\n?|[ \t]*\n)+)",
    re.MULTILINE,
)
SPHINX_FIELD = re.compile(r":param\s+(?:[^:\s]+\s+)?\*{0,2}(\w+)\s*:")


@dataclass
class Module:
    """One file: its syntax tree, and where names come from."""

    name: str
    path: Path
    tree: ast.Module
    is_package: bool
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measures:
    """What is measured of one package.

    `circles` are those of imports at import time, with those for type checkers, and with those in
    functions too.
    """

    name: str
    files: int
    long_files: int
    bodies: list[int]
    parameters: int
    described: int
    parameters_by_name: int
    described_by_name: int
    circles: tuple[int, int, int]


def read_package(folder: Path) -> dict[str, Module]:
    """The modules of a package by their dotted names; stub files stand for lazy entry points."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        below = path.relative_to(folder)
        if SKIPPED.search(below.as_posix()):
            continue
        parts = [folder.name, *below.with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        modules[name] = Module(name, path, tree, is_package)
    for module in modules.values():
        module.origins = dict(origins(module, exporting_tree(module), modules))
    return modules


def exporting_tree(module: Module) -> ast.Module:
    """The stub beside a module, where there is one, since it names what is imported lazily."""
    stub = module.path.with_suffix(".pyi")
    return ast.parse(stub.read_text(encoding="utf-8")) if stub.exists() else module.tree


def origins(
    module: Module, tree: ast.Module, modules: dict[str, Module]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each name that a module imports from its own package, with the module and its name there."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (base := absolute(module, node)) in modules:
            for alias in node.names:
                if alias.name == "*":
                    for name in exports(modules[base]):
                        yield name, (base, name)
                else:
                    yield alias.asname or alias.name, (base, alias.name)


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """The dotted name that ``from ... import`` imports from."""
    if not node.level:
        return node.module or ""
    here = module.name.split(".")
    up = node.level - module.is_package
    return ".".join([*here[: len(here) - up], *([node.module] if node.module else [])])


def exports(module: Module) -> list[str]:
    """A module's `__all__`; without one, what it defines and what a package imports.

    Names with an underscore are left out of the latter.
    """
    tree = exporting_tree(module)
    listed = []
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            elements = getattr(node.value, "elts", [])
            listed += [item.value for item in elements if isinstance(item, ast.Constant)]
    if listed:
        return listed
    names = [node.name for node in tree.body if isinstance(node, Function | ast.ClassDef)]
    names += module.origins if module.is_package else ()
    return [name for name in names if not name.startswith("_")]


def definition(
    modules: dict[str, Module], home: str, name: str, depth: int = 0
) -> tuple[str, ast.AST] | None:
    """Where a name is defined, followed through imports: the module, and the function or class."""
    module = modules.get(home)
    if module is None or depth > 10:
        return None
    for node in module.tree.body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return home, node
    if name in module.origins:
        return definition(modules, *module.origins[name], depth + 1)
    return None


def is_public(name: str) -> bool:
    """Whether no part of a dotted name begins with an underscore."""
    return not any(part.startswith("_") for part in name.split("."))


def public_definitions(
    modules: dict[str, Module], homes: Iterable[str]
) -> dict[tuple[str, str], ast.AST]:
    """Functions and classes that these modules export, each once."""
    found = {}
    for home in homes:
        for name in exports(modules[home]):
            if name[0] != "_" and (place := definition(modules, home, name)):
                found[place[0], name] = place[1]
    return found


def described_in(modules: dict[str, Module], homes: Iterable[str]) -> list[bool]:
    """Whether each parameter of what these modules export is described."""
    nodes = public_definitions(modules, homes).values()
    return [flag for node in nodes for flag in described_parameters(node)]


def described_parameters(node: ast.AST) -> Iterator[bool]:
    """Whether each parameter of a function, or of a class and its methods, is described."""
    if isinstance(node, Function):
        names = described_names(ast.get_docstring(node))
        yield from (name in names for name in parameter_names(node))
        return
    assert isinstance(node, ast.ClassDef)
    of_class = described_names(ast.get_docstring(node))
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        for item in node.body:
            if is_field(item):
                yield item.target.id in of_class
    for item in node.body:
        if isinstance(item, Function) and not is_overload(item):
            if item.name in ("__init__", "__new__"):
                names = of_class | described_names(ast.get_docstring(item))
                yield from (name in names for name in parameter_names(item))
            elif item.name[0] != "_" or item.name == "__call__":
                yield from described_parameters(item)


def is_field(item: ast.stmt) -> bool:
    """Whether this statement of a dataclass is a public field."""
    return (
        isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(item.annotation)
    )


def parameter_names(function: Function) -> list[str]:
    """All parameters but self, and none with an underscore."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [item for item in (arguments.vararg, arguments.kwarg) if item]
    return [item.arg for item in every if item.arg not in ("self", "cls") and item.arg[0] != "_"]


def is_overload(function: Function) -> bool:
    """Whether this is one of several signatures, without a body of its own."""
    return any("overload" in ast.unparse(item) for item in function.decorator_list)


def described_names(docstring: str | None) -> set[str]:
    """The parameters that a docstring has an entry for."""
    if not docstring:
        return set()
    names = set(SPHINX_FIELD.findall(docstring))
    for section in NUMPY_SECTION.findall(docstring):
        for line in section.splitlines():
            if line and not line[0].isspace():
                names |= {part.strip(" *`\\") for part in line.split(":")[0].split(",")}
    for _, section in GOOGLE_SECTION.findall(docstring):
        names |= set(re.findall(r"^\s*\*{0,2}(\w+)\s*(?:\([^\n]*?\))?\s*:", section, re.MULTILINE))
    return names


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def statements(body: list[ast.stmt], *, types: bool, functions: bool) -> Iterator[ast.AST]:
    """Statements that run at import; on request those for type checkers and those in functions."""
    for node in body:
        if isinstance(node, Function) and not functions:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, block, []), types=types, functions=functions)
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body, types=types, functions=functions)


def circles(modules: dict[str, Module], *, types: bool = False, functions: bool = False) -> int:
    """How many groups of modules import each other in a circle."""
    graph = {
        name: set(imported(module, modules, types=types, functions=functions)) - {name}
        for name, module in modules.items()
    }
    reach = {name: reachable(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }
    return len(groups)


def imported(
    module: Module, modules: dict[str, Module], *, types: bool, functions: bool
) -> Iterator[str]:
    """Modules of the same package that a module imports."""
    for node in statements(module.tree.body, types=types, functions=functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield from (name for name in (inner, base) if name in modules)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every module that one imports, directly or not."""
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def measure(name: str, folder: Path, public_modules: list[str]) -> Measures:
    """Everything about one package; `public_modules` are public beside its packages."""
    modules = read_package(folder)
    packages = [name for name, module in modules.items() if module.is_package and is_public(name)]
    beside = [f"{folder.name}.{module}" for module in public_modules]
    api = described_in(modules, [*packages, *beside])
    by_name = described_in(modules, filter(is_public, modules))
    functions = [
        node
        for module in modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, Function) and not is_overload(node)
    ]
    lengths = [len(module.path.read_bytes().splitlines()) for module in modules.values()]
    return Measures(
        name=name,
        files=len(lengths),
        long_files=sum(length > LONG_FILE for length in lengths),
        bodies=sorted(body_lines(node) for node in functions),
        parameters=len(api),
        described=sum(api),
        parameters_by_name=len(by_name),
        described_by_name=sum(by_name),
        circles=(
            circles(modules),
            circles(modules, types=True),
            circles(modules, types=True, functions=True),
        ),
    )


def share(part: int, whole: int) -> str:
    """A part in per cent, rounded down, so that 100% is all."""
    return f"{math.floor(100 * part / whole)}% of {whole:,}" if whole else "-"


def table(measures: list[Measures]) -> str:
    """The measures as Markdown, a row for each package."""
    heads = [
        "package",
        "files",
        f"over {LONG_FILE} lines",
        "function body: median / 90% / longest",
        "parameters described: exported by packages",
        "in all public modules",
        "import circles: at import / with types / with functions",
    ]
    rows = [" | ".join(heads), " | ".join(["---"] * len(heads))]
    for item in measures:
        tenth = item.bodies[math.ceil(0.9 * len(item.bodies)) - 1]
        cells = [
            item.name,
            str(item.files),
            str(item.long_files),
            f"{statistics.median(item.bodies):.0f} / {tenth} / {item.bodies[-1]}",
            share(item.described, item.parameters),
            share(item.described_by_name, item.parameters_by_name),
            " / ".join(str(count) for count in item.circles),
        ]
        rows.append(" | ".join(cells))
    return "\n".join(f"| {row} |" for row in rows)


def main() -> None:
    """Print the table for the folders on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="[NAME=]FOLDER[+MODULE...]",
        help="a package's folder; MODULEs of it are public beside what its packages export",
    )
    measures = []
    for argument in parser.parse_args().folders:
        name, _, rest = argument.rpartition("=")
        folder, *public_modules = rest.split("+")
        measures.append(measure(name or Path(folder).name, Path(folder), public_modules))
    print(table(measures))


if __name__ == "__main__":
    main()
