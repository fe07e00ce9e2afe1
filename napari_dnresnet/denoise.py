"""The dock widget "Denoise layer"."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, FloatSlider, FloatSpinBox, Label, LineEdit, PushButton
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from napari_dnresnet.docks import Dock, side_by_side
from napari_dnresnet.jobs import sentence, time_left
from napari_dnresnet.layers import Axes, bare, default_axes, guess_in_words, highest_level, is_zarr, readable, shown_plane, time_axes
from napari_dnresnet.models import model_list, model_names
from napari_dnresnet.preview import Preview, Wish, is_preview
from napari_dnresnet.results import Plan, Result, discard, empty_target, is_residual, model_hash, residual_settings, results
from napari_dnresnet.settings import preferences
from napari_dnresnet.stand_ins import StandIns

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

    from dn_core.inference.denoise import Progress

__all__ = ["DenoiseWidget", "Finished"]

FLICKER = 600
"""Milliseconds between before and after."""
FILLING, REST = 0.5, 10
"""Seconds between looks at a large result that is being written, and how many times longer than a look they are at least."""
PROGRESS = 0.1
"""Seconds between changes of the progress bar: each paints the window."""


class DenoiseWidget(Dock):
    """Denoise an image layer: preview, run, cancel, adjust, compare, copy as code."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer)
        self._filling: Result | None = None
        self._running: tuple[Image, float] | None = None
        self._takes_noise = False
        self._followed: Image | None = None
        self._adapting = False
        self._before = False
        self._about: weakref.ref[Result] | None = None
        self._compared: StandIns | None = None
        self._watched: Image | None = None
        self._typed: weakref.WeakKeyDictionary[Image, str] = weakref.WeakKeyDictionary()
        self.layer = ComboBox(label="Layer", choices=self._layers, nullable=True)
        self.model = ComboBox(label="Model", choices=model_names)
        self.axes = LineEdit(label="Axes")
        self.words = Label(value="")
        self.about = Label(value="")
        self.noise = FloatSpinBox(label="Noise level", min=0, max=1e9, value=0, step=1, visible=False)
        self.amount = FloatSlider(label="Amount", min=0, max=1, value=1, step=0.01)
        self.fill = CheckBox(text="Leave NaN and infinity as they are", value=False)
        self.preview_on = CheckBox(text="Preview what is on screen", value=False)
        self.run = PushButton(text="Denoise")
        self.stop = PushButton(text="Cancel", enabled=False)
        self.before = PushButton(text="Hold: before")
        self.flicker = PushButton(text="Flicker")
        self.residual = PushButton(text="Residual")
        self.undo = PushButton(text="Remove result")
        self.copy_python = PushButton(text="Copy as Python")
        self.copy_command = PushButton(text="Copy as command")
        self.arrange(
            *(self.layer, self.axes, self.words, self.model, self.noise, self.amount, self.fill, self.preview_on),
            side_by_side(self.run, self.stop),
            *(self.bar, self.status, self.about),
            side_by_side(self.before, self.flicker),
            side_by_side(self.residual, self.undo),
            side_by_side(self.copy_python, self.copy_command),
        )
        self.preview = Preview(viewer, self._wish, self.tell, preferences().preview, self.native)
        self._timer = QTimer(self.native)
        self._connect()
        self._follow()
        self._layer_changed()
        self._model_changed()
        self._show_state()

    def _connect(self) -> None:
        self.layer.changed.connect(self._layer_changed)
        self.axes.changed.connect(self._axes_typed)
        self.model.changed.connect(self._model_changed)
        for widget in (self.noise, self.fill):
            widget.changed.connect(self.preview.refresh)
        self.amount.changed.connect(self._amount_changed)
        self.preview_on.changed.connect(self._preview_changed)
        self.run.clicked.connect(self.start)
        self.stop.clicked.connect(self.cancel)
        self.before.native.pressed.connect(lambda: self._compare(before=True))
        self.before.native.released.connect(self._restore)
        self.flicker.native.setCheckable(True)
        self.flicker.native.toggled.connect(self._flicker)
        self.residual.clicked.connect(self._add_residual)
        self.undo.clicked.connect(self._remove_result)
        self.copy_python.clicked.connect(lambda: self._copy("python"))
        self.copy_command.clicked.connect(lambda: self._copy("command"))
        self._timer.timeout.connect(self._tick)
        self.viewer.layers.selection.events.active.connect(self._follow)
        self.viewer.layers.events.removed.connect(self._layer_removed)
        model_list.changed.connect(self._models_changed)
        results.changed.connect(self._results_changed)

    # What is chosen

    def reset_choices(self, *args: Any) -> None:
        """See Dock; what changes by itself is not what the user has chosen."""
        before, self._adapting = self._adapting, True
        super().reset_choices(*args)
        self._adapting = before

    def _choices_changed(self) -> None:
        if self.layer.value is None:  # the chosen one is gone, and napari selects no other
            images = [layer for _, layer in self._layers() if results.of(layer) is None and not is_residual(layer)]
            self.layer.value = images[-1] if images else None
        self._refer()

    def _models_changed(self) -> None:
        if not self._alive:
            return
        before = self.model.value
        self.model.reset_choices()
        if self.model.value != before:
            self.tell(f"The model {before} is gone; {self.model.value} is chosen now.")

    def _follow(self, event: Any = None) -> None:
        """Take the layer that is selected, or the one whose result is."""
        active = self.viewer.layers.selection.active if self._alive else None
        if is_preview(active):  # it comes and goes, and the selection with it for a moment
            return
        if active is not None and active != self._followed and active in [layer for _, layer in self._layers()]:
            self._followed = active
            result = results.of(active)
            chosen = active if result is None else result.source
            if chosen is not None and chosen in self.viewer.layers and not is_residual(chosen):
                self._adapting = True
                self.layer.reset_choices()
                self.layer.value = chosen
                self._adapting = False
        self._refer()

    @property
    def result(self) -> Result | None:
        """What amount, comparing, residual and code are about: the selected result, otherwise the latest of the chosen layer."""
        return results.of(self.viewer.layers.selection.active) or self._latest(self.layer.value)

    def _latest(self, layer: Image | None) -> Result | None:
        """The latest result of a layer, or whose layer it is."""
        layer, here = bare(layer), reversed(results.within(self.viewer))
        return None if layer is None else next((result for result in here if layer in (result.layer, result.source)), None)

    def _refer(self) -> None:
        """Show what the widget is about now."""
        if not self._alive:
            return
        result, before = self.result, self._about and self._about()
        if result is not before:
            self._about = None if result is None else weakref.ref(result)
            self._stop_comparing()
            if result is not None and result.finished:
                self._show_amount(result)
                if self.job is None and result.summary:
                    self.tell(result.summary)
        self._show_state()

    def _show_amount(self, result: Result) -> None:
        with self.amount.changed.blocked():
            self.amount.value = result.amount
        self.preview.set_amount(result.amount)

    def _results_changed(self) -> None:
        """A result has changed, perhaps by another dock."""
        if not self._alive:
            return
        result = self.result
        if result is not None and result.amount != self.amount.value and self._about is not None and result is self._about():
            self._show_amount(result)
        self._refer()

    def _layer_changed(self, *_: Any) -> None:
        layer = self.layer.value
        selected = results.of(self.viewer.layers.selection.active)
        if not self._adapting and selected is not None and bare(layer) not in (selected.layer, selected.source):
            latest = self._latest(layer)  # chosen here, so that the selected result is not meant any more
            self.viewer.layers.selection.active = layer if latest is None else latest.layer
        self._watch(layer)
        self._stop_comparing()
        self._show_axes()
        self.preview.refresh()
        self._refer()

    def _watch(self, layer: Image | None) -> None:
        """Follow what changes the axes of the chosen layer."""
        for watched, act in ((self._watched, "disconnect"), (layer, "connect")):
            for name in ("data", "axis_labels", "units") if watched is not None else ():
                getattr(getattr(watched.events, name), act)(self._show_axes)
        self._watched = layer

    def _show_axes(self, event: Any = None) -> None:
        """Each layer has its own axes: as they were typed for it, as long as they fit, otherwise as its labels say."""
        layer = self.layer.value
        if layer is None:
            text, self.words.value = "", "Open an image, or File > Open Sample > DnResNet."
        else:
            shape = tuple(highest_level(layer).shape)
            typed = self._typed.get(bare(layer), "")
            labels = tuple(map(str, layer.axis_labels))
            text = typed if len(typed) == len(shape) else default_axes(labels, shape, layer.rgb, time_axes(layer))
        with self.axes.changed.blocked():
            self.axes.value = text
        if layer is not None:
            self._axes_changed()

    def _axes_typed(self, text: str) -> None:
        if self.layer.value is not None:
            self._typed[bare(self.layer.value)] = text
        self._axes_changed()

    def _axes_changed(self) -> None:
        try:
            axes = self.chosen_axes()
        except ValueError as error:
            self.words.value = sentence(error)
        else:
            words = [axes.in_words(), guess_in_words(self.layer.value, axes.letters)] if axes else []
            self.words.value = "\n".join(filter(None, words))
            self.preview.refresh()

    def chosen_axes(self) -> Axes | None:
        """The axes as they are typed; None without a layer."""
        layer = self.layer.value
        return None if layer is None else Axes(self.axes.value.strip().upper(), tuple(highest_level(layer).shape))

    def _model_changed(self, *_: Any) -> None:
        from dn_core.inference.denoise import load_model

        try:
            self._takes_noise = load_model(self.model.value).config.noise_map
            self.noise.visible = self._takes_noise
        except (ValueError, OSError) as error:
            self.tell(sentence(error))
        self.preview.refresh()

    def options(self) -> dict[str, Any]:
        """The options of `dn_core.denoise_steps`, but for axes and amount."""
        device = preferences().device
        return {
            "model": self.model.value,
            "noise": self.noise.value if self._takes_noise else None,
            "device": None if device == "auto" else device,
            "nonfinite": "fill" if self.fill.value else "raise",
        }

    def _wish(self) -> Wish | None:
        axes = self.chosen_axes()
        return None if axes is None else Wish(self.layer.value, axes, self.options())

    # Running

    def start(self) -> None:
        """Denoise the chosen layer."""
        if self.job is not None:
            return
        try:
            axes = self.chosen_axes()
            if axes is None:
                raise ValueError("there is no image layer; one is expected. Open an image, or File > Open Sample > DnResNet.")
            source = self.layer.value
            plan = Plan.of(source, axes, self.options())
            large = plan.is_large
            target = (
                empty_target(plan, preferences().folder) if large else np.empty(axes.shape, np.dtype(plan.data.dtype).newbyteorder("="))
            )
        except (ValueError, OSError) as error:
            self._failed(error)
            return
        self._stop_comparing()
        self._running = (source, self.amount.value)
        self._filling = self._add(plan, target, source) if large else None
        self._show_after = self._refresh_after = 0.0
        self.tell("Starting the engine ...")
        self.work(lambda: _denoising(plan, target), lambda step: self._progress(plan, source, step), name=f"denoise {plan.name}")

    def _add(self, plan: Plan, whole: Any, source: Image) -> Result:
        """Add a result's layer; napari selects it, unless the user has turned to something else."""
        selected = set(self.viewer.layers.selection)
        family = [source, *(result.layer for result in results.within(self.viewer) if result.source is bare(source))]
        result = Result.added(self.viewer, plan, whole, source)
        if any(layer not in family for layer in selected):
            self.viewer.layers.selection = selected
        return result

    def _progress(self, plan: Plan, source: Image, step: Progress | Finished) -> None:
        if isinstance(step, Finished):
            there = source if source in self.viewer.layers else None
            self._finish(self._filling or self._add(plan.renewed(there), step.result, source), step)
            return
        began = time.monotonic()
        if began > self._show_after:
            self._show_after = began + PROGRESS
            self.show_progress(step.done, step.total)
            self.tell(", ".join(filter(None, (f"{step.done} of {step.total} tiles", time_left(step.seconds_left)))))
        if self._filling is not None and began > self._refresh_after:
            self._filling.layer.refresh()
            now = time.monotonic()
            self._refresh_after = now + max(FILLING, REST * (now - began))

    def _finish(self, result: Result, facts: Finished) -> None:
        """The pixels are all there."""
        result.finished, self._filling = True, None
        result.layer.refresh()
        options = {key: value for key, value in result.plan.options.items() if value is not None}
        megapixels = math.prod(result.plan.axes.shape) / 1e6
        rate = megapixels / max(facts.seconds, 1e-9)
        said = f"{options['model']} on {facts.engine}: {facts.seconds:.2g} s, {rate:.3g} megapixels per second."
        missing = f"{facts.missing}." if facts.missing else ""
        result.summary = " ".join(filter(None, (said, missing, *facts.notes, self._changes(result))))
        amount = 1.0 if self._running is None else self._running[1]
        result.note(**options, model_sha256=facts.sha256, axes=result.plan.axes.letters, engine=facts.engine)
        if amount != 1:
            result.set_amount(amount, self._shown_plane(result))
        if result is self.result:
            self._show_amount(result)
        self.tell(result.summary)
        model_list.note_run(facts.sha256, megapixels, rate, facts.engine)
        if self.preview.on and bare(self.layer.value) is result.source:
            self.preview_on.value = False

    def _changes(self, result: Result) -> str:
        """What has happened to the layer since the run began."""
        name = result.plan.name
        if result.source is None or result.source not in self.viewer.layers:
            return f"The layer {name} is gone; its result is here."
        return "" if result.plan.is_of(result.source) else f"The layer {name} has other pixels now; this is the result of those before."

    def _failed(self, error: Exception) -> None:
        if not self._alive:
            return
        from napari.utils.notifications import show_error

        super()._failed(error)
        show_error(sentence(error))
        self._drop_unfinished()

    def _work_stopped(self) -> None:
        if self.job is not None and self.job.cancelled:
            self._drop_unfinished()
        self._running = None
        super()._work_stopped()

    def _drop_unfinished(self) -> None:
        """A large result that was being written goes away with its layer."""
        result, self._filling = self._filling, None
        if result is None:
            return
        layer = result.layer
        results.forget(result)
        if self._alive and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)
        discard(result.whole)

    # After the run

    def _amount_changed(self, amount: float) -> None:
        self.preview.set_amount(amount)
        result = self.result
        if self._running is not None and bare(self.layer.value) is bare(self._running[0]):
            self._running = (self._running[0], amount)
        if result is not None and result.finished:
            result.set_amount(amount, self._shown_plane(result))

    def _shown_plane(self, result: Result) -> tuple[int, ...]:
        """The index of the plane on screen in the axes before rows and columns."""
        return shown_plane(result.layer, self.viewer.dims, result.plan.axes)

    def _preview_changed(self, on: bool) -> None:
        self.preview.set_amount(self.amount.value)
        self.preview.limit = preferences().preview
        (self.preview.start if on else self.preview.stop)()
        self._show_state()

    def _compare(self, before: bool) -> None:
        """Show the original alone, or what is compared with it."""
        result = self.result
        after = self.preview.layer if self.preview.layer is not None else result and result.layer
        if after is None or after not in self.viewer.layers:
            return
        source = self.layer.value if result is None or after is self.preview.layer else result.source
        self._compared = StandIns.of(self.viewer, after)
        self._compared.show_only(source if before else after)

    def _restore(self) -> None:
        """Show and hide as before comparing."""
        compared, self._compared = self._compared, None
        if compared is not None:
            compared.restore()

    def _flicker(self, on: bool) -> None:
        if on:
            self._before = False
            self._timer.start(FLICKER)
        else:
            self._timer.stop()
            self._restore()

    def _tick(self) -> None:
        self._before = not self._before
        self._compare(self._before)

    def _stop_comparing(self) -> None:
        self.flicker.native.setChecked(False)
        self._restore()

    def _add_residual(self) -> None:
        result = self.result
        if result is not None:
            residual, selected = result.residual(), set(self.viewer.layers.selection)
            self.viewer.add_image(residual, **residual_settings(result, residual))
            self.viewer.layers.selection = selected  # what the widget is about stays

    def _remove_result(self) -> None:
        """Take the result away; what it hid is seen again."""
        result = self.result
        if result is None:
            return
        layer, source = result.layer, result.source
        self.viewer.layers.remove(layer)
        if source is not None and source in self.viewer.layers:
            self.viewer.layers.selection.active = source
        self.tell(f"Removed {layer.name}.")

    def code(self, kind: str) -> str:
        """The result, or what is chosen, as Python code or as a command."""
        if self.result is not None:
            return self.result.as_code(kind, self.viewer)
        axes = self.chosen_axes()
        if axes is None:
            return ""
        plan, amount = Plan.of(self.layer.value, axes, self.options()), self.amount.value
        return plan.as_python(amount) if kind == "python" else plan.as_command(amount)

    def _copy(self, kind: str) -> None:
        try:
            QApplication.clipboard().setText(self.code(kind))
        except ValueError as error:
            self.tell(sentence(error))
            return
        self.tell("Copied. " + ("Paste it into napari's console." if kind == "python" else "Paste it into a shell."))

    def _layer_removed(self, event: Any) -> None:
        if not self._alive:
            return
        result = results.of(event.value)
        if result is not None:
            result.close()
            if result is self._filling:
                self.cancel()
        if event.value == self._followed:
            self._followed = None
        self._stop_comparing()
        self._refer()

    # Showing and ending

    def _show_state(self) -> None:
        if not self._alive:
            return
        super()._show_state()
        self.stop.enabled = self.busy
        self.run.enabled = not self.busy and self.layer.value is not None
        for button in (self.copy_python, self.copy_command):
            button.enabled = self.layer.value is not None or self.result is not None
        result = self.result
        finished = result is not None and result.finished
        for button in (self.before, self.flicker):
            button.enabled = self.preview.on or finished
        self.residual.enabled = finished
        self.undo.enabled = result is not None
        self.about.value = f"Result: {_in_words(result)}" if result else ""

    def close_down(self) -> None:
        """Stop everything, and take the preview away."""
        super().close_down()
        if self._alive:
            self._stop_comparing()
            self.preview_on.value = False
            return
        self.preview.abandon()
        for result in results.within(self.viewer):
            result.close()


def _in_words(result: Result) -> str:
    """Which result it is."""
    source = result.source
    return f"{result.layer.name}, of {result.plan.name if source is None else source.name} with {result.plan.options['model']}"


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a run: its result, who computed it, and how long it took."""

    result: Any
    engine: str
    sha256: str
    seconds: float
    missing: str = ""
    """What was not there and was read as a fill value, in words."""
    notes: tuple[str, ...] = ()
    """See `dn_core.Progress`."""


def _denoising(plan: Plan, target: Any) -> Iterator[Progress | Finished]:
    """The steps of a run."""
    from dn_core.files.zarr_chunks import ZarrSource
    from dn_core.inference.denoise import denoise_steps, engine_name
    from dn_core.models.registry import resolve

    options = plan.all_options()
    engine, sha256 = engine_name(options["model"], options["device"], plan.data.dtype), model_hash(resolve(options["model"]))
    source = ZarrSource(plan.data) if is_zarr(plan.data) else readable(plan.data)
    missing = source.count.in_words if isinstance(source, ZarrSource) else plan.missing()
    began = time.monotonic()
    for step in denoise_steps(source, out=target, **options):
        yield step if step.result is None else Finished(step.result, engine, sha256, time.monotonic() - began, missing, step.notes)
