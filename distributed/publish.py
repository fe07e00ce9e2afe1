"""Publish models to a registry that ``dn-resnet models fetch`` and the napari plugin download from.

    python distributed/publish.py MODEL.safetensors ... --to FOLDER_OR_ADDRESS --test DIR

The registry is a folder (shared, or served by a web server) or a store of fsspec such as ``s3://bucket/models``. Each model is read and
hashed again and scored on the images of DIR. It is refused where it is worse than the noisy image, or worse by more than a tolerance than
the version that it replaces, measured on the same noise. Files are named after their content and never changed; the index that names them
is replaced last and whole, so that a reader sees the old state or the new one, whenever this is killed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from fsspec.core import url_to_fs

from dn_cluster.command import app_of, explained
from dn_cluster.conditional import ChangedError, is_guarded, mark_of, replace_marked
from dn_cluster.words import named_after
from dn_core.checkpoints import Card, load_checkpoint
from dn_core.errors import RegistryError
from dn_core.evaluation import measure
from dn_core.evaluation.measure import Image, Level
from dn_core.locks import locked
from dn_core.models import registry
from dn_core.models.index import FILE, MAX_INDEX_BYTES, Entry, Index, check_name, content_name, index_bytes, parse_index
from dn_core.models.web import check_address, read_whole
from dn_core.safe_write import clear_leftovers, replaced_file

LEVELS = ("gaussian 10", "gaussian 25", "gaussian 50")
TOLERANCE = 0.02
"""dB that a new version may lose where nothing else is said."""
LOCK_FILE = ".publish.lock"
LOCK_SECONDS = 60.0
ATTEMPTS = 40
"""How often a publisher makes its index anew because others were first; each time, one of them is done."""
PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to publish: its bytes, read once, so that what was checked is what is published."""

    name: str
    content: bytes
    sha256: str
    card: Card

    def record(self, version: int, more: dict[str, Any]) -> dict[str, Any]:
        """Its line in the index."""
        texts = {"licence": self.card.licence, "description": self.card.description, "noise": self.card.noise}
        file = content_name(self.name, self.sha256)
        return {"name": self.name, "version": version, "file": file, "sha256": self.sha256, "bytes": len(self.content)} | texts | more


class NoisyImage:
    """The method that does nothing: what every model has to beat."""

    name = "noisy"
    parameters = 0
    macs_per_pixel = 0.0

    def __call__(self, image: Image, std: float) -> Image:
        """The image."""
        return image


def read_candidates(paths: Sequence[Path]) -> list[Candidate]:
    """Read the files again, with every check of the loader, and refuse names that no user could fetch."""
    bundled = {entry.name: entry.sha256 for entry in registry.entries() if entry.kind == "bundled"}
    found: dict[str, Candidate] = {}
    for path in paths:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        card = load_checkpoint(path, digest).card
        name = check_name(card.name)
        if name in found:
            raise ValueError(f"two of the models are named {name}; each name is expected once. Publish one of them.")
        if bundled.get(name, digest) != digest:
            raise ValueError(
                f"{path} is named {name}, as a model that comes with the package, which users would keep instead. Make a copy with another "
                f"name: dn-resnet models add {path} --name NAME"
            )
        found[name] = Candidate(name, content, digest, card)
    return list(found.values())


def read_index(address: str) -> Index:
    """What is published; nothing where there is no index yet."""
    try:
        return parse_index(read_whole(address, FILE, MAX_INDEX_BYTES), address, "remote")
    except FileNotFoundError:
        return Index(0, (), ())


def score(content: bytes, place: str, images: Sequence[Image], levels: Sequence[Level]) -> dict[str, float]:
    """PSNR by level of a model file, which errors call `place`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        with named_after(place, path):
            return {found.level: found.psnr for found in measure.evaluate([measure.OwnMethod(path)], images, levels)}


def worse(new: dict[str, float], old: dict[str, float], tolerance: float) -> dict[str, float]:
    """By how many dB a model is worse, at the levels where that is more than the tolerance; NaN is worse than anything."""
    return {level: round(old[level] - value, 4) for level, value in new.items() if not value >= old[level] - tolerance}


def judge(
    address: str, candidate: Candidate, old: Entry | None, images: Sequence[Image], levels: Sequence[Level], tolerance: float, reason: str
) -> dict[str, Any]:
    """Score a model beside what it replaces; give its line in the index, or refuse it."""
    noisy = {found.level: found.psnr for found in measure.evaluate([NoisyImage()], images, levels)}
    new = score(candidate.content, candidate.name, images, levels)
    before: dict[str, float] = {}
    if old is not None:
        content = read_whole(address, old.file, old.bytes)
        if hashlib.sha256(content).hexdigest() != old.sha256:
            raise ValueError(f"{old.location} is not the file that the index names; it cannot be compared with. Restore it, or remove it.")
        before = score(content, old.location, images, levels)
    for level, value in new.items():
        beside = f", version {old.version} {before[level]:.3f} dB" if old is not None else ""
        typer.echo(f"{candidate.name}: {level}: {value:.3f} dB{beside}, noisy {noisy[level]:.3f} dB")
    lost = {**worse(new, noisy, 0.0), **(worse(new, before, tolerance) if before else {})}
    if lost and not reason:
        listed = ", ".join(f"{value:.3f} dB at {level}" for level, value in lost.items())
        what = f"version {old.version} or the noisy image" if old is not None else "the noisy image"
        raise ValueError(
            f"{candidate.name} is worse than {what} by {listed}; at most {tolerance:g} dB is allowed. "
            "Train it longer, or publish it with --accept-worse REASON, which the index will show."
        )
    digest = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()
    more: dict[str, Any] = {
        "scores": {level: round(value, 4) for level, value in new.items()},
        "test": {"images": len(images), "sha256": digest, "tolerance": tolerance},
    }
    if old is not None:
        more["replaces"] = {"version": old.version, "sha256": old.sha256}
    if lost:
        more["accepted_worse"] = {"reason": reason, "by": lost}
    return candidate.record(old.version + 1 if old is not None else 1, more)


def publish(address: str, chosen: Sequence[tuple[Candidate, dict[str, Any]]], seen: Index) -> int:
    """Write files, then the index; give its sequence number.

    Raises
    ------
    RegistryError
        When another publisher changed, after `seen` was read, what these models were compared with.
    """
    for candidate, record in chosen:
        write_blob(address, record["file"], candidate)
    if check_address(address) == "store":
        smallest, record = min(chosen, key=lambda item: len(item[0].content))
        if is_guarded(f"{address}/{record['file']}", smallest.content):
            return publish_guarded(address, chosen, seen)
        typer.echo(f"{address}: this store cannot keep two publishers from undoing each other; publish to it from one place.", err=True)
    with alone(address):
        now = read_index(address)
        check_unchanged(address, chosen, seen, now)
        content = merged(now, chosen)
        write(address, FILE, content)
        if read_whole(address, FILE, MAX_INDEX_BYTES) != content:
            raise RegistryError(f"{address} was changed by another publisher at the same moment. Publish again.")
    return now.sequence + 1


def publish_guarded(address: str, chosen: Sequence[tuple[Candidate, dict[str, Any]]], seen: Index) -> int:
    """The same in a store that replaces an index only where it is still the one that ours was made from; else it is made anew."""
    for attempt in range(ATTEMPTS):
        mark = mark_of(f"{address}/{FILE}")  # looked up first: what is read then is this index, or a newer one, which is not replaced
        now = read_index(address)
        if all(record in now.records for _, record in chosen):  # our own write, whose answer was lost
            return now.sequence
        check_unchanged(address, chosen, seen, now)
        try:
            replace_marked(f"{address}/{FILE}", merged(now, chosen), mark)
        except ChangedError:
            time.sleep(random.uniform(0, min(PAUSE_SECONDS, 0.02 * 2**attempt)))
            continue
        return now.sequence + 1
    raise RegistryError(f"other publishers changed {address} {ATTEMPTS} times in a row, just before ours was written. Publish again.")


def check_unchanged(address: str, chosen: Sequence[tuple[Candidate, dict[str, Any]]], seen: Index, now: Index) -> None:
    """Refuse to replace what these models were not compared with."""
    names = {record["name"] for _, record in chosen}
    mine, theirs = ([record for record in index.records if record["name"] in names] for index in (seen, now))
    if mine != theirs:
        raise RegistryError(
            f"{address} was changed by another publisher (sequence number {now.sequence}, {seen.sequence} when scoring began). "
            "Publish again, so that the models are compared with the new ones."
        )


def merged(now: Index, chosen: Sequence[tuple[Candidate, dict[str, Any]]]) -> bytes:
    """The next index: that of now, with these models in place of those of their names."""
    new = [record for _, record in chosen]
    names = {record["name"] for record in new}
    return index_bytes(now.sequence + 1, [*(record for record in now.records if record["name"] not in names), *new])


def write_blob(address: str, file: str, candidate: Candidate) -> None:
    """Write a model's file unless it is there, and read it back."""
    for attempt in ("there", "written"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if hashlib.sha256(read_whole(address, file, len(candidate.content))).hexdigest() == candidate.sha256:
                return
        if attempt == "there":
            write(address, file, candidate.content)
    raise OSError(errno.EIO, "what was written reads otherwise; the index was not changed", f"{address}/{file}")


def write(address: str, file: str, content: bytes) -> None:
    """Replace a file of the registry as a whole."""
    if check_address(address) == "folder":
        try:
            with replaced_file(Path(address) / file) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            what = f"it cannot be written ({error.strerror}) and the index is as before; make room, or change the permissions"
            raise OSError(error.errno, what, f"{address}/{file}") from error
        return
    store, path = url_to_fs(f"{address}/{file}")
    store.pipe_file(path, content)


@contextlib.contextmanager
def alone(address: str) -> Iterator[None]:
    """Keep other publishers out of a folder; stores have no lock."""
    if check_address(address) == "store":
        yield
        return
    with locked(Path(address) / LOCK_FILE, LOCK_SECONDS, "another publisher holds the registry; wait for it or stop it"):
        yield


def open_registry(address: str) -> str:
    """The address in one spelling; a folder is made where it is missing."""
    kind = check_address(address)
    if kind == "web":
        raise ValueError(f"{address} can only be read; publish to the folder that the web server shows, or to a store such as s3://.")
    if kind == "folder":
        Path(address).expanduser().mkdir(parents=True, exist_ok=True)
        clear_leftovers(Path(address).expanduser())
        return str(Path(address).expanduser().absolute())
    return address.rstrip("/")


def run(models: Sequence[Path], to: str, test: Path, names: Sequence[str], limit: int | None, tolerance: float, reason: str) -> str:
    """Everything in order: read, score, refuse or write; what became of each model."""
    address = open_registry(to)
    candidates = read_candidates(models)
    known = measure.paper_levels()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no level {unknown[0]!r}; one of {', '.join(known)} is expected. Change --level.")
    index = read_index(address)
    there = {entry.name: entry for entry in index.entries}
    images = measure.read_images(test, limit)
    chosen, told = [], []
    for candidate in candidates:
        old = there.get(candidate.name)
        if old is not None and old.sha256 == candidate.sha256:
            write_blob(address, old.file, candidate)
            told.append(f"{candidate.name}: version {old.version} has this content already")
            continue
        levels = [known[name] for name in names]
        chosen.append((candidate, judge(address, candidate, old, images, levels, tolerance, reason)))
    if chosen:
        sequence = publish(address, chosen, index)
        told += [f"{record['name']}: published version {record['version']} to {to} (sequence number {sequence})" for _, record in chosen]
    return "\n".join(told)


def main(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Model files.")],
    to: Annotated[str, typer.Option(help="The registry: a folder, or an address of fsspec such as s3://bucket/models.")],
    test: Annotated[Path, typer.Option(help="Folder of clean test images.")],
    level: Annotated[
        list[str] | None, typer.Option(help=f"Noise to score at; may be given several times. Default: {', '.join(LEVELS)}.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="dB that a new version may be worse.")] = TOLERANCE,
    accept_worse: Annotated[str, typer.Option(metavar="REASON", help="Publish a worse model; the index shows the reason.")] = "",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Score, refuse, publish."""
    explained(lambda: run(models, to, test, level or LEVELS, limit, tolerance, accept_worse), debug)


app = app_of(main, "Score models, refuse those that are worse than what they replace, and publish the others to a registry.")

if __name__ == "__main__":
    app()
