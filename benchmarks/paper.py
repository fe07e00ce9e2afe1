"""The paper's tables beside ours, for ``docs/paper.md``: ``python benchmarks/paper.py --data DIR``.

`DIR` has the folders ``test/set12``, ``test/bsd68``, ``test/set14``, ``test/bsd200``,
``test/classic5`` and ``peers``. Under each table stands the command that gives it alone.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from page import put_into

from dn_core.paper.baselines import BaselineMethod, load_baseline
from dn_core.paper.protocol import (
    Method,
    ModelMethod,
    evaluate,
    level_named,
    paper_levels,
    read_images,
)
from dn_core.paper.tables import Cost, paper_rows, table_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "paper.md"


@dataclass(frozen=True)
class Part:
    """A table of the page: its mark, and what is measured on which sets.

    The paper's number is None for what is not a table there.
    """

    name: str
    number: int | None
    sets: tuple[str, ...]
    models: tuple[str, ...]
    baselines: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()

    def command(self) -> str:
        """What gives this table alone."""
        words = ["dn-resnet evaluate"]
        words += (
            [f"--table {self.number}"]
            if self.number
            else [f'--level "{level}"' for level in self.levels]
        )
        words += [f"--data test/{name}" for name in self.sets]
        words += [f"--model {name}" for name in self.models] + [
            f"--baseline peers/{name}.safetensors" for name in self.baselines
        ]
        return " ".join(words)


PARTS = (
    Part("table 3", 3, ("set12",), ("dn-resnet-13", "ds-dn-resnet-13", "dn-fast", "dn-quality")),
    Part(
        "bsd68",
        None,
        ("bsd68",),
        ("dn-resnet-13", "dn-fast", "dn-quality"),
        ("dncnn_b",),
        ("gaussian 15", "gaussian 25", "gaussian 50"),
    ),
    Part(
        "table 5", 5, ("set14", "bsd200"), ("dn-resnet-13", "dn-fast", "dn-quality"), ("dncnn_b",)
    ),
    Part(
        "jpeg",
        None,
        ("classic5",),
        ("dn-jpeg",),
        ("dncnn3",),
        ("jpeg 10", "jpeg 20", "jpeg 30", "jpeg 40"),
    ),
)


def measured(part: Part, data: Path) -> Iterator[str]:
    """The lines of a part."""
    methods: list[Method] = [ModelMethod(name) for name in part.models]
    methods += [
        BaselineMethod(load_baseline(data / "peers" / f"{name}.safetensors"))
        for name in part.baselines
    ]
    names = part.levels or (
        dict.fromkeys(row.partition(": ")[2] for row in paper_rows(5))
        if part.number == 5
        else paper_levels()
    )
    levels = [level_named(name) for name in names]
    scores = [
        (name, score)
        for name in part.sets
        for score in evaluate(methods, read_images(data / "test" / name), levels)
    ]
    yield table_of(
        part.number, scores, {method.name: Cost.of(method) for method in methods}
    ).as_markdown()
    yield f"`{part.command()}`; {datetime.date.today()}, {platform.machine()}."


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--part",
        choices=[part.name for part in PARTS],
        action="append",
        help="only this one; may be given several times",
    )
    arguments = parser.parse_args()
    for part in PARTS:
        if not arguments.part or part.name in arguments.part:
            put_into(PAGE, part.name, "\n".join(measured(part, arguments.data)))
            print(part.name, flush=True)


if __name__ == "__main__":
    main()
