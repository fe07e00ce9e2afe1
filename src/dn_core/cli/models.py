"""``dn-resnet models``: list, show, fetch, add, remove."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dn_core.cli.console import FAILURES, Debug, bar, explained, say, sentence

if TYPE_CHECKING:
    from dn_core.models.index import Entry

__all__ = ["models_app"]

_NAME_HELP = "A name for the newest version, a name with a version such as dn-fast@1."
_WIDE = 2000  # columns of a table that no terminal shows: nothing is wrapped

models_app = typer.Typer(name="models", invoke_without_command=True, rich_markup_mode=None)


@models_app.callback()
def models(
    context: typer.Context,
    debug: Debug = False,
) -> None:
    """List, show, download, add and remove models."""
    if context.invoked_subcommand is None:
        list_models(debug=debug)


@models_app.command("list")
def list_models(
    address: Annotated[
        str | None,
        typer.Option("--registry", help="A folder, web address or object store: list its models."),
    ] = None,
    older: Annotated[
        bool, typer.Option("--all", help="Older versions too, which are named as dn-fast@1.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    debug: Debug = False,
) -> None:
    """List the models on this machine, or those of a registry."""
    from dn_core.models import registry

    with explained(debug):
        listed = _entries(address, older)
        if as_json:
            more = ("location", "reference")
            tables = [
                dataclasses.asdict(entry) | {name: getattr(entry, name) for name in more}
                for entry in listed
            ]
            typer.echo(json.dumps(tables, indent=1))
            return
    _print_models(listed, registry.default_name(), debug)


@models_app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help=_NAME_HELP)],
    address: Annotated[
        str | None,
        typer.Option("--registry", help="A folder, web address or object store that has it."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what a model is: what it learnt from, under which terms it may be used, its scores."""
    from dn_core.models.facts import model_facts
    from dn_core.models.index import split_reference
    from dn_core.models.registry import find

    with explained(debug):
        if address is None:
            entry = find(name)
        else:
            from dn_core.models.remote import find_remote

            entry = find_remote(*split_reference(name), address)
        facts = model_facts(entry)
    width = max(len(label) for label in facts)
    for label, text in facts.items():
        first, *others = text.splitlines()
        typer.echo(f"{label:{width}}  {first}")
        for line in others:
            typer.echo(f"{'':{width}}  {line}")


@models_app.command("fetch")
def fetch_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="As listed by 'dn-resnet models list --registry ADDRESS', or one version of it, "
            "as lab@1.",
        ),
    ],
    address: Annotated[
        str,
        typer.Option(
            "--registry", envvar="DN_REGISTRY", help="A folder, web address or object store."
        ),
    ],
    debug: Debug = False,
) -> None:
    """Download a model from a registry; use it by its name from then on."""
    from dn_core.models import remote

    with (
        explained(debug),
        bar(name) as advance,
        contextlib.closing(remote.fetch_steps(name, address)) as steps,
    ):
        for step in steps:
            advance(step.done, step.total)
            if step.path is not None:
                typer.echo(step.path)


@models_app.command("add")
def add_model(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A model file, as written by dn-resnet train.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it. Default: the name in the file.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Copy a model file into the models folder; use it by its name from then on."""
    from dn_core.models import registry

    with explained(debug):
        typer.echo(registry.add(file, name).path)


@models_app.command("remove")
def remove_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A downloaded or added model, or one version of it, as lab@1."
        ),
    ],
    debug: Debug = False,
) -> None:
    """Delete a downloaded or added model."""
    from dn_core.models import registry

    with explained(debug):
        registry.remove(name)


def _entries(address: str | None, older: bool) -> Sequence[Entry]:
    """The models on this machine, or those of a registry."""
    if address is None:
        from dn_core.models import registry

        return registry.entries(older=older)
    from dn_core.models.remote import remote_entries  # brings what downloads need

    return remote_entries(address, older=older)


def _print_models(listed: Sequence[Entry], default: str, debug: bool) -> None:
    """A table of models. A damaged one is named, the others are listed, and the exit code is 1."""
    from rich.table import Table

    from dn_core.checkpoints import load_checkpoint

    shown: set[str] = set()
    table, damaged = (
        Table("model", "weights", "kB", "kind", "made for", "description", box=None),
        False,
    )
    for entry in listed:
        try:
            checkpoint = (
                None if entry.kind == "remote" else load_checkpoint(entry.path, entry.sha256)
            )
        except FAILURES as error:
            if debug:
                raise
            damaged = True
            say(f"{entry.reference}: {sentence(error)}")
            continue
        weights = (
            f"{sum(value.size for value in checkpoint.weights.values()):,}" if checkpoint else "-"
        )
        card = checkpoint.card if checkpoint else entry.card()
        chosen = (entry.name, entry.kind) == (default, "bundled") and entry.name not in shown
        name = f"{entry.name} (default)" if chosen else entry.name
        shown.add(entry.name)
        table.add_row(
            name,
            weights,
            f"{entry.bytes / 1000:.0f}",
            f"{entry.kind}, version {entry.version}",
            card.noise,
            card.description,
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    if damaged:
        raise typer.Exit(1)
