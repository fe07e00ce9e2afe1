"""The dock widget "Denoising models": what there is, what each is for, and getting more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from magicgui.widgets import ComboBox, Label, LineEdit, PushButton, SpinBox
from psygnal import Signal
from qtpy.QtWidgets import QAbstractItemView, QFileDialog, QHeaderView, QTableWidget, QTableWidgetItem

from napari_dnresnet.docks import Dock, side_by_side
from napari_dnresnet.jobs import sentence
from napari_dnresnet.settings import DEVICES, PREVIEW_SIZES, on_change, preferences, remember, use_models_folder

if TYPE_CHECKING:
    import napari

    from dn_core.models.index import Entry

__all__ = ["ModelsWidget", "card_in_words", "model_list", "model_names"]

COLUMNS = ("Model", "Made for", "kB", "Where")
WHERE = {"bundled": "comes with it", "downloaded": "downloaded", "own": "own", "remote": "to download"}


MEASURED = 1.0
"""Megapixels from which a run says how fast a model is; in smaller ones it is mostly the start."""


class _ModelList:
    """Says to all widgets that list models that there are others than before, and keeps how fast they were."""

    changed = Signal()
    timed = Signal()

    def __init__(self) -> None:
        self.speeds: dict[str, str] = {}

    def note_run(self, sha256: str, megapixels: float, rate: float, engine: str) -> None:
        """Keep the rate of a run, in megapixels per second, in words."""
        if megapixels >= MEASURED:
            self.speeds[sha256] = f"about {rate:.2g} megapixels per second here (last run: {megapixels:.3g} megapixels, {engine})"
            self.timed.emit()


model_list = _ModelList()


def models_here() -> tuple[Entry, ...]:
    """The models on this machine, the default one first."""
    from dn_core.models import registry

    use_models_folder()
    return registry.entries()


def model_names(widget: Any = None) -> list[str]:
    """Their names, as choices of a magicgui widget."""
    return [entry.name for entry in models_here()]


def card_in_words(entry: Entry) -> str:
    """What a person wants to know of a model."""
    from dn_core.inference.denoise import load_model

    card = entry.card()
    lines = [f"{card.name}: {card.description}", f"Made for: {card.noise or 'not said'}"]
    if card.scores:
        lines.append("Scores (dB): " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in card.scores.items()))
    if steps := card.training.get("steps"):
        lines.append(f"Trained for {steps:,} steps ({card.training.get('megapixels', 0):,.0f} megapixels)")
    speed = [f"{load_model(entry.path).config.macs_per_pixel:,.0f} multiplications per pixel"] if entry.kind != "remote" else []
    speed += [model_list.speeds[entry.sha256]] if entry.sha256 in model_list.speeds else []
    lines += [f"Speed: {'; '.join(speed)}"] if speed else []
    lines.append(f"Licence: {card.licence or 'not said'}; {entry.bytes / 1000:,.0f} kB; sha256 {entry.sha256[:16]}...")
    return "\n".join(lines)


class ModelsWidget(Dock):
    """List, look at, add, download and delete models."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer)
        self._entries: list[Entry] = []
        self._remote: list[Entry] = []
        self._asked = self._here = ""
        self.table = QTableWidget(0, len(COLUMNS))
        self.card = Label(value="")
        self.add = PushButton(text="Add a file ...")
        self.delete = PushButton(text="Delete")
        self.registry = LineEdit(label="Registry", value=preferences().registry)
        self.look = PushButton(text="Look there")
        self.download = PushButton(text="Download")
        self.stop = PushButton(text="Cancel")
        self.folder = LineEdit(label="Models folder")
        self.device = ComboBox(label="Device", choices=DEVICES)
        self.preview = SpinBox(label="Preview size", min=PREVIEW_SIZES[0], max=PREVIEW_SIZES[1], step=64)
        self.arrange(
            self.card,
            side_by_side(self.add, self.delete),
            self.registry,
            side_by_side(self.look, self.download, self.stop),
            *(self.bar, self.status),
            Label(value="Settings, as in File > Preferences:"),
            *(self.folder, self.device, self.preview),
        )
        self._dress()
        self.add.clicked.connect(lambda: self.add_file())
        self.delete.clicked.connect(self.delete_chosen)
        self.look.clicked.connect(self.look_there)
        self.download.clicked.connect(self.download_chosen)
        self.stop.clicked.connect(self.cancel)
        self.folder.native.editingFinished.connect(lambda: remember(models=self.folder.value.strip()))
        self.device.changed.connect(lambda device: remember(device=device))
        self.preview.changed.connect(lambda size: remember(preview=size))
        on_change(self._settings_changed)
        model_list.changed.connect(self.refresh)
        model_list.timed.connect(self._show_card)
        self._settings_changed()

    def _dress(self) -> None:
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self.table.setMinimumHeight(90)
        self.native.layout().insertWidget(0, self.table)
        self.registry.tooltip = "A folder, or an address such as https://example.org/models"
        self.table.itemSelectionChanged.connect(self._show_card)

    def _settings_changed(self, *_: Any) -> None:
        """Show the preferences; list the models of the folder that they name now."""
        if not self._alive:
            return
        from dn_core.models.registry import models_folder

        now = preferences()
        for widget, value in ((self.folder, now.models), (self.device, now.device), (self.preview, now.preview)):
            with widget.changed.blocked():
                widget.value = value
        use_models_folder()
        here = str(models_folder())
        self.folder.native.setPlaceholderText(here)
        if here != self._here:
            self._here = here
            model_list.changed.emit()

    # The list

    def refresh(self) -> None:
        """Show what there is now."""
        if not self._alive:
            return
        from dn_core.models import registry

        chosen = self.chosen
        here = list(models_here())
        known = {(entry.name, entry.sha256) for entry in here}
        self._entries = here + [entry for entry in self._remote if (entry.name, entry.sha256) not in known]
        self.table.setRowCount(len(self._entries))
        for row, entry in enumerate(self._entries):
            name = f"{entry.name} (default)" if entry.name == registry.default_name() else entry.name
            noise = _card_noise(entry)
            for column, text in enumerate((name, noise, f"{entry.bytes / 1000:,.0f}", WHERE[entry.kind])):
                item = QTableWidgetItem(text)
                item.setToolTip(text)
                self.table.setItem(row, column, item)
        self.choose(chosen.name if chosen is not None else registry.default_name())

    @property
    def chosen(self) -> Entry | None:
        """The model whose row is selected."""
        rows = self.table.selectionModel().selectedRows()
        return self._entries[rows[0].row()] if rows else None

    def choose(self, name: str) -> None:
        """Select a row; of two with that name the one to download comes second."""
        for row, entry in enumerate(self._entries):
            if entry.name == name:
                self.table.selectRow(row)
                break
        self._show_card()

    def _show_card(self) -> None:
        if not self._alive:
            return
        entry = self.chosen
        self._asked, self.delete.text = "", "Delete"
        try:
            self.card.value = "" if entry is None else card_in_words(entry)
        except (ValueError, OSError) as error:
            self.card.value = sentence(error)
        self._show_state()

    def _show_state(self) -> None:
        if not self._alive:
            return
        super()._show_state()
        kind = None if self.chosen is None else self.chosen.kind
        self.delete.enabled = not self.busy and kind in ("downloaded", "own")
        self.download.enabled = not self.busy and kind == "remote"
        self.look.enabled = not self.busy
        self.stop.enabled = self.busy

    # What can be done

    def add_file(self, path: str = "") -> None:
        """Copy a model file into the models folder; without `path` the user is asked."""
        path = path or QFileDialog.getOpenFileName(self.native, "Add a model", "", "Models (*.safetensors)")[0]
        if path:
            from dn_core.models import registry

            self._try(lambda: registry.add(path), lambda entry: (f"Added {entry.name}.", entry.name))

    def delete_chosen(self) -> None:
        """Delete the model that is selected from this machine."""
        entry = self.chosen
        if entry is not None and entry.kind == "own" and self._asked != entry.name:
            self._asked = entry.name
            self.delete.text = "Really delete?"
            self.tell(f"{entry.name} is your own, and there may be no other copy. Press again to delete it.")
        elif entry is not None:
            from dn_core.models import registry

            self._try(lambda: registry.remove(entry.name), lambda _: (f"Deleted {entry.name}.", registry.default_name()))

    def _try(self, act: Any, told: Any) -> None:
        try:
            text, name = told(act())
        except (ValueError, OSError) as error:
            self.tell(sentence(error))
            return
        model_list.changed.emit()
        self.choose(name)
        self.tell(text)

    def look_there(self) -> None:
        """List what the registry offers."""
        address = self.registry.value.strip()
        if self.job is not None:
            return
        if not address:
            self.tell("No registry is named; a folder or an https address is expected. Type one above.")
            return
        remember(registry=address)

        def steps() -> Iterator[Any]:
            from dn_core.models.remote import remote_entries

            yield remote_entries(address)

        self.tell(f"Looking at {address} ...")
        self.show_progress(0, 0)
        self.work(steps, self._listed)

    def _listed(self, entries: tuple[Any, ...]) -> None:
        self._remote = list(entries)
        self.refresh()
        count = sum(entry.kind == "remote" for entry in self._entries)
        self.tell(f"{len(entries)} models there, {count} of them to download.")

    def download_chosen(self) -> None:
        """Fetch the model that is selected."""
        entry, address = self.chosen, self.registry.value.strip()
        if self.job is not None or entry is None or entry.kind != "remote":
            return

        def steps() -> Iterator[Any]:
            from dn_core.models.remote import fetch_steps

            return fetch_steps(entry.name, address)

        self.tell(f"Downloading {entry.name} ...")
        self.show_progress(0, 0)
        self.work(steps, lambda step: self._downloaded(entry.name, step))

    def _downloaded(self, name: str, step: Any) -> None:
        self.show_progress(step.done, step.total)
        if step.path is not None:
            model_list.changed.emit()
            self.choose(name)
            self.tell(f"Downloaded {name}; it is in every list of models.")


def _card_noise(entry: Entry) -> str:
    try:
        return str(entry.card().noise)
    except (ValueError, OSError):
        return "cannot be read"
