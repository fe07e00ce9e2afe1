"""The dock widget "Denoising models": list, describe, add, download and delete models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from magicgui.widgets import ComboBox, Label, LineEdit, PushButton, SpinBox
from psygnal import Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
)

from napari_dnresnet.docks import Dock, side_by_side
from napari_dnresnet.settings import (
    DEVICES,
    PREVIEW_SIZES,
    on_change,
    preferences,
    remember,
    use_models_folder,
)

if TYPE_CHECKING:
    import napari

    from dn_core.models.index import Entry

__all__ = ["ModelsWidget", "card_text", "model_list", "model_names", "models_here"]

COLUMNS = ("Model", "Made for", "kB", "Origin", "Version")
ORIGINS = {
    "bundled": "bundled",
    "downloaded": "downloaded",
    "own": "own",
    "remote": "to download",
}

MEASURED_MEGAPIXELS = 1.0
"""Smaller runs do not show how fast a model is: most of their time is the start of the engine."""


class _ModelList:
    """Tells all widgets that the list of models has changed, and keeps how fast models were."""

    changed = Signal()
    timed = Signal()

    def __init__(self) -> None:
        self.speeds: dict[str, str] = {}
        """How fast each model was, in words, by the hash of its file."""

    def note_run(self, sha256: str, megapixels: float, rate: float, engine: str) -> None:
        """Keep how fast a run was.

        Parameters
        ----------
        sha256 : str
            Hash of the model's file.
        megapixels : float
            How many were denoised; see `MEASURED_MEGAPIXELS`.
        rate : float
            Megapixels per second.
        engine : str
            What computed them, in words.
        """
        if megapixels >= MEASURED_MEGAPIXELS:
            self.speeds[sha256] = (
                f"about {rate:.2g} megapixels per second here (last run: {megapixels:.3g} "
                f"megapixels, {engine})"
            )
            self.timed.emit()


model_list = _ModelList()


def models_here() -> tuple[Entry, ...]:
    """The models on this machine, the default one first, older versions after the newest."""
    from dn_core.models import registry

    use_models_folder()
    return registry.entries(older=True)


def model_names(widget: Any = None) -> list[str]:
    """The names of `models_here`, as choices of a magicgui widget: older versions come last."""
    names: list[str] = []
    older: list[str] = []
    for entry in models_here():
        if entry.name in names:
            older.append(entry.reference)
        else:
            names.append(entry.name)
    return [*names, *older]


def card_text(entry: Entry) -> str:
    """A description of a model for the user, from its card."""
    from dn_core import load_model
    from dn_core.models.facts import model_facts

    facts = model_facts(entry)
    speed = []
    if entry.kind != "remote":
        macs = load_model(entry.path).config.macs_per_pixel
        speed.append(f"{macs:,.0f} multiplications per pixel")
    if entry.sha256 in model_list.speeds:
        speed.append(model_list.speeds[entry.sha256])
    if speed:
        facts = facts | {"Speed": "; ".join(speed)}
    return "\n".join(f"{name}: {text}" for name, text in facts.items())


class ModelsWidget(Dock):
    """List, describe, add, download and delete models."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer)
        self._entries: list[Entry] = []
        self._remote: list[Entry] = []
        self._asked = self._shown_folder = ""
        self.table = QTableWidget(0, len(COLUMNS))
        self.card = Label(value="")
        self.add = PushButton(text="Add a file ...")
        self.delete = PushButton(text="Delete")
        self.registry = LineEdit(label="Registry", value=preferences().registry)
        self.list = PushButton(text="List models")
        self.download = PushButton(text="Download")
        self.stop = PushButton(text="Cancel")
        self.folder = LineEdit(label="Models folder")
        self.device = ComboBox(label="Device", choices=DEVICES)
        self.preview = SpinBox(
            label="Preview size", min=PREVIEW_SIZES[0], max=PREVIEW_SIZES[1], step=64
        )
        self.arrange(
            self.card,
            side_by_side(self.add, self.delete),
            self.registry,
            side_by_side(self.list, self.download, self.stop),
            self.bar,
            self.status,
            Label(value="Settings, as in File > Preferences:"),
            self.folder,
            self.device,
            self.preview,
        )
        self._set_up_table()
        self._connect()
        self._settings_changed()

    def _connect(self) -> None:
        self.add.clicked.connect(lambda: self.add_file())
        self.delete.clicked.connect(self.delete_chosen)
        self.list.clicked.connect(self.list_models)
        self.download.clicked.connect(self.download_chosen)
        self.stop.clicked.connect(self.cancel)
        self.folder.native.editingFinished.connect(
            lambda: remember(models=self.folder.value.strip())
        )
        self.device.changed.connect(lambda device: remember(device=device))
        self.preview.changed.connect(lambda size: remember(preview=size))
        on_change(self._settings_changed)
        model_list.changed.connect(self.refresh)
        model_list.timed.connect(self._show_card)

    def _set_up_table(self) -> None:
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        rows, columns = self.table.verticalHeader(), self.table.horizontalHeader()
        if rows is not None and columns is not None:
            rows.hide()
            columns.setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self.table.setMinimumHeight(90)
        self.native.layout().insertWidget(0, self.table)
        self.registry.tooltip = "A folder, or an address such as https://example.org/models"
        self.table.itemSelectionChanged.connect(self._show_card)

    def _settings_changed(self, *_: Any) -> None:
        """Show the preferences, and the models of their folder."""
        if not self._alive:
            return
        from dn_core.models import models_folder

        now = preferences()
        for widget, value in (
            (self.folder, now.models),
            (self.device, now.device),
            (self.preview, now.preview),
        ):
            with widget.changed.blocked():
                widget.value = value
        use_models_folder()
        folder = str(models_folder())
        self.folder.native.setPlaceholderText(folder)
        if folder != self._shown_folder:
            self._shown_folder = folder
            model_list.changed.emit()

    # The list

    def refresh(self) -> None:
        """List the models on this machine and those of the registry that was listed."""
        if not self._alive:
            return
        from dn_core.models import registry

        chosen, default = self.chosen, registry.default_name()
        here = list(models_here())
        known = {(entry.reference, entry.sha256) for entry in here}
        self._entries = here + [
            entry for entry in self._remote if (entry.reference, entry.sha256) not in known
        ]
        newest = {entry.name: entry.reference for entry in reversed(here)}
        self.table.setRowCount(len(self._entries))
        for row, entry in enumerate(self._entries):
            is_default = entry.name == default and entry.reference == newest[default]
            name = f"{entry.name} (default)" if is_default else entry.name
            size = f"{entry.bytes / 1000:,.0f}"
            texts = (name, _card_noise(entry), size, ORIGINS[entry.kind], str(entry.version))
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setToolTip(text)
                self.table.setItem(row, column, item)
        self.choose(default if chosen is None else chosen.reference)

    @property
    def chosen(self) -> Entry | None:
        """The model whose row is selected."""
        selection = self.table.selectionModel()
        rows = [] if selection is None else selection.selectedRows()
        return self._entries[rows[0].row()] if rows else None

    def choose(self, name: str) -> None:
        """Select the row of a model, named alone or with its version.

        Where several have the name, the newest one on this machine is selected.
        """
        for row, entry in enumerate(self._entries):
            if name in (entry.name, entry.reference):
                self.table.selectRow(row)
                break
        self._show_card()

    def _show_card(self) -> None:
        from dn_core.errors import error_message

        if not self._alive:
            return
        entry = self.chosen
        self._asked, self.delete.text = "", "Delete"
        try:
            self.card.value = "" if entry is None else card_text(entry)
        except (ValueError, OSError) as error:
            self.card.value = error_message(error)
        self._show_state()

    def _show_state(self) -> None:
        if not self._alive:
            return
        super()._show_state()
        kind = None if self.chosen is None else self.chosen.kind
        self.delete.enabled = not self.busy and kind in ("downloaded", "own")
        self.download.enabled = not self.busy and kind == "remote"
        self.list.enabled = not self.busy
        self.stop.enabled = self.busy

    # Actions

    def add_file(self, path: str = "") -> None:
        """Copy a model file into the models folder; without `path` the user is asked."""
        from dn_core.models import registry

        if not path:
            path, _ = QFileDialog.getOpenFileName(
                self.native, "Add a model", "", "Models (*.safetensors)"
            )
        if not path:
            return
        try:
            name = registry.add(path).name
        except (ValueError, OSError) as error:
            self.tell_error(error)
            return
        self._changed(f"Added {name}.", name)

    def delete_chosen(self) -> None:
        """Delete the selected model from this machine; own ones after asking again."""
        from dn_core.models import registry

        entry = self.chosen
        if entry is None:
            return
        if entry.kind == "own" and self._asked != entry.name:
            self._asked = entry.name
            self.delete.text = "Really delete?"
            self.tell(
                f"{entry.name} is your own model, and there may be no other copy. Press again to "
                "delete it."
            )
            return
        try:
            registry.remove(entry.reference)
        except (ValueError, OSError) as error:
            self.tell_error(error)
            return
        self._changed(f"Deleted {entry.name}.", registry.default_name())

    def _changed(self, text: str, chosen: str) -> None:
        """The models on this machine have changed: update all lists, and say it."""
        model_list.changed.emit()
        self.choose(chosen)
        self.tell(text)

    def list_models(self) -> None:
        """List the models of the registry."""
        address = self.registry.value.strip()
        if self.task is not None:
            return
        if not address:
            self.tell("Enter a registry above: a folder or an https address.")
            return
        remember(registry=address)

        def steps() -> Iterator[Any]:
            from dn_core.models.remote import remote_entries

            yield remote_entries(address)

        self.tell(f"Listing the models of {address} ...")
        self.show_progress(0, 0)
        self.work(steps, self._listed)

    def _listed(self, entries: tuple[Any, ...]) -> None:
        self._remote = list(entries)
        self.refresh()
        count = sum(entry.kind == "remote" for entry in self._entries)
        self.tell(f"The registry has {len(entries)} models, {count} of them to download.")

    def download_chosen(self) -> None:
        """Download the selected model."""
        entry, address = self.chosen, self.registry.value.strip()
        if self.task is not None or entry is None or entry.kind != "remote":
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
            self._changed(f"Downloaded {name}; it can be chosen in all lists of models.", name)


def _card_noise(entry: Entry) -> str:
    """The noise that a model was made for."""
    try:
        return str(entry.card().noise)
    except (ValueError, OSError):
        return "unreadable"
