"""Public signatures and their docstrings agree.

``python tests/test_docstrings.py`` lists what is missing.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

docscrape = pytest.importorskip("numpydoc.docscrape", reason="numpydoc is in the extra 'docs'")

# What the public API is: the front door and what these modules name in their `__all__`.
MODULES = [
    "dn_core",
    "dn_core.files",
    "dn_core.models",
    "dn_core.networks",
    "dn_core.noise",
    "dn_core.training",
]
GIVES_BACK = ("Returns", "Yields")


def public_objects(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions and classes of a module's `__all__`, and the public methods of the classes."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value):
            yield f"{module.__name__}.{name}", value
            for member, attribute in vars(value).items():
                if not member.startswith("_") or member == "__call__":
                    yield f"{module.__name__}.{name}.{member}", attribute
        elif callable(value):
            yield f"{module.__name__}.{name}", value


def parsed(docstring: str) -> dict[str, list]:
    return docscrape.NumpyDocString(inspect.cleandoc(docstring))


def documented(doc: dict[str, list], *sections: str) -> dict[str, str]:
    """The names in these sections, each with its description; `noisy, clean` are two."""
    return {
        name.strip().lstrip("*"): " ".join(item.desc).strip()
        for section in sections
        for item in doc[section]
        for name in item.name.split(",")
    }


def faults_of_parameters(signature: inspect.Signature, described: dict[str, str]) -> Iterator[str]:
    wanted = [
        name
        for name in signature.parameters
        if name not in ("self", "cls") and not name.startswith("_")
    ]
    for name in wanted:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            yield f"**{name} hides its options: write them out"
        if name not in described:
            yield f"{name} is missing under Parameters"
        elif not described[name]:
            yield f"{name} has no description"


def missing_types(doc: dict[str, list]) -> Iterator[str]:
    for section in ("Parameters", "Attributes"):
        for item in doc[section]:
            if not item.type and item.name:
                yield f"{item.name} has no type under {section}"


def faults_of_function(function: Callable) -> Iterator[str]:
    """What a function's docstring lacks, or has too much."""
    if not function.__doc__:
        yield "the docstring is missing"
        return
    doc, signature = parsed(function.__doc__), inspect.signature(function)
    described = documented(doc, "Parameters")
    yield from faults_of_parameters(signature, described)
    yield from missing_types(doc)
    for name in described.keys() - signature.parameters.keys():
        yield f"{name} is under Parameters and does not exist"
    nothing = signature.return_annotation in (None, "None")
    if not nothing and not any(doc[section] for section in GIVES_BACK):
        yield "Returns or Yields is missing"


def faults_of_class(kind: type) -> Iterator[str]:
    """As for functions; fields of a dataclass may be among Attributes too."""
    if not vars(kind).get("__doc__"):
        yield "the docstring is missing"
        return
    doc = parsed(kind.__doc__ or "")
    described = documented(doc, "Parameters", "Attributes")
    if "__init__" not in vars(kind) or getattr(kind, "_is_protocol", False):
        return
    signature = inspect.signature(kind)
    yield from faults_of_parameters(signature, described)
    yield from missing_types(doc)
    fields = {*getattr(kind, "__dataclass_fields__", {})}
    for name in sorted(fields - signature.parameters.keys() - described.keys()):
        if not name.startswith("_"):
            yield f"{name} is missing under Attributes"
    for name in documented(doc, "Parameters").keys() - signature.parameters.keys():
        yield f"{name} is under Parameters and does not exist"
    for name in documented(doc, "Attributes").keys() - signature.parameters.keys() - fields:
        if not hasattr(kind, name) and name not in annotations_and_assignments(kind):
            yield f"{name} is under Attributes and does not exist"


def annotations_and_assignments(kind: type) -> set[str]:
    """Attributes that a class declares, or that its `__init__` sets."""
    return {*inspect.get_annotations(kind), *kind.__init__.__code__.co_names}


def faults(value: object) -> Iterator[str]:
    if inspect.isclass(value):
        yield from faults_of_class(value)
    elif isinstance(value, property | classmethod | staticmethod):
        function = value.fget if isinstance(value, property) else value.__func__
        if isinstance(value, property):
            if not function.__doc__:
                yield "the docstring is missing"
        else:
            yield from faults_of_function(function)
    elif inspect.isfunction(value):
        yield from faults_of_function(value)


def all_faults(name: str) -> list[str]:
    module = importlib.import_module(name)
    if not hasattr(module, "__all__"):
        return ["__all__ is missing"]
    return [
        f"{place}: {fault}" for place, value in public_objects(module) for fault in faults(value)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_describe_every_public_signature(module: str) -> None:
    found = all_faults(module)
    assert not found, "\n".join(found)


def test_what_is_missing_is_found() -> None:
    """The check itself, on a function and a dataclass that lack something."""

    def spread(image: object, width: int, **options: object) -> int:
        """Spread.

        Parameters
        ----------
        image
            The image.
        height
            No such thing.
        """
        return width

    @dataclasses.dataclass
    class Spread:
        """How.

        Attributes
        ----------
        width
            In pixels.
        """

        width: int
        height: int

    assert sorted(faults(spread)) == [
        "**options hides its options: write them out",
        "Returns or Yields is missing",
        "height has no type under Parameters",
        "height is under Parameters and does not exist",
        "image has no type under Parameters",
        "options is missing under Parameters",
        "width is missing under Parameters",
    ]
    assert list(faults(Spread)) == [
        "height is missing under Parameters",
        "width has no type under Attributes",
    ]


if __name__ == "__main__":
    for name in MODULES:
        print(name, *(all_faults(name) or ["nothing is missing"]), sep="\n    ")
