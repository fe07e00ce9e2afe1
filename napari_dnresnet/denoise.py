"""The dock widget "Denoise layer"."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, FloatSlider, FloatSpinBox, Label, LineEdit, PushButton
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from napari_dnresnet.docks import Dock, side_by_side
from napari_dnresnet.jobs import sentence, time_left
from napari_dnresnet.layers import Axes, default_axes, guess_in_words, highest_level, is_zarr, readable, time_axes
from napari_dnresnet.models import model_list, model_names
from napari_dnresnet.preview import Preview, Wish
from napari_dnresnet.results import METADATA, Plan, Result, discard, empty_target, model_hash, residual_settings
from napari_dnresnet.settings import preferences

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
        self._results: list[Result] = []
        self._filling: Result | None = None
        self._takes_noise = False
        self._followed: Image | None = None
        self.layer = ComboBox(label="Layer", choices=self._layers, nullable=True)
        self.model = ComboBox(label="Model", choices=model_names)
        self.axes = LineEdit(label="Axes")
        self.words = Label(value="")
        self.noise = FloatSpinBox(label="Noise level", min=0, max=1e9, value=0, step=1, visible=False)
        self.amount = FloatSlider(label="Amount", min=0, max=1, value=1, step=0.01)
        self.fill = CheckBox(text="Leave NaN and infinity as they are", value=False)
        self.preview_on = CheckBox(text="Preview what is on screen", value=False)
        self.run = PushButton(text="Denoise")
        self.stop = PushButton(text="Cancel", enabled=False)
        self.before = PushButton(text="Hold: before")
        self.flicker = PushButton(text="Flicker")
        self.residual = PushButton(text="Residual")
        self.copy_python = PushButton(text="Copy as Python")
        self.copy_command = PushButton(text="Copy as command")
        self.arrange(
            *(self.layer, self.axes, self.words, self.model, self.noise, self.amount, self.fill, self.preview_on),
            side_by_side(self.run, self.stop),
            *(self.bar, self.status),
            side_by_side(self.before, self.flicker, self.residual),
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
        self.axes.changed.connect(self._axes_changed)
        self.model.changed.connect(self._model_changed)
        for widget in (self.noise, self.fill):
            widget.changed.connect(self.preview.refresh)
        self.amount.changed.connect(self._amount_changed)
        self.preview_on.changed.connect(self._preview_changed)
        self.run.clicked.connect(self.start)
        self.stop.clicked.connect(self.cancel)
        self.before.native.pressed.connect(lambda: self._show_result(False))
        self.before.native.released.connect(lambda: self._show_result(True))
        self.flicker.native.setCheckable(True)
        self.flicker.native.toggled.connect(self._flicker)
        self.residual.clicked.connect(self._add_residual)
        self.copy_python.clicked.connect(lambda: self._copy("python"))
        self.copy_command.clicked.connect(lambda: self._copy("command"))
        self._timer.timeout.connect(self._tick)
        self.viewer.layers.selection.events.active.connect(self._follow)
        self.viewer.layers.events.removed.connect(self._layer_removed)
        model_list.changed.connect(self._models_changed)

    # What is chosen

    def _choices_changed(self) -> None:
        if self.layer.value is None:  # the chosen one is gone, and napari selects no other
            images = [layer for _, layer in self._layers() if METADATA not in layer.metadata]
            self.layer.value = images[-1] if images else None

    def _models_changed(self) -> None:
        if not self._alive:
            return
        before = self.model.value
        self.model.reset_choices()
        if self.model.value != before:
            self.tell(f"The model {before} is gone; {self.model.value} is chosen now.")

    def _follow(self, event: Any = None) -> None:
        """Take the layer that is selected, unless it is one of our own results."""
        active = self.viewer.layers.selection.active
        if not self._alive or active not in [layer for _, layer in self._layers()] or METADATA in active.metadata:
            return
        if active == self._followed:  # a preview that comes or goes changes the selection for a moment
            return
        self._followed = active
        self.layer.reset_choices()
        self.layer.value = active

    @property
    def result(self) -> Result | None:
        """The result of the chosen layer, or whose layer it is; the latest one."""
        layer = self.layer.value
        if layer is None:
            return None
        return next((result for result in reversed(self._results) if layer in (result.layer, result.source)), None)

    def _layer_changed(self, *_: Any) -> None:
        layer = self.layer.value
        self._stop_comparing()
        if self.result is not None:
            with self.amount.changed.blocked():
                self.amount.value = self.result.amount
            self.preview.set_amount(self.amount.value)
        if layer is None:
            self.axes.value, self.words.value = "", "Open an image, or File > Open Sample > DnResNet."
        else:
            data = highest_level(layer)
            self.axes.value = default_axes(tuple(map(str, layer.axis_labels)), tuple(data.shape), layer.rgb, time_axes(layer))
            self._axes_changed()
        self.preview.refresh()
        self._show_state()

    def _axes_changed(self, *_: Any) -> None:
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
        self._filling = self._add(plan, target, source) if large else None
        self._show_after = self._refresh_after = 0.0
        self.tell("Starting the engine ...")
        self.work(lambda: _denoising(plan, target), lambda step: self._progress(plan, source, step), name=f"denoise {plan.name}")

    def _add(self, plan: Plan, whole: Any, source: Image) -> Result:
        """Add a result's layer."""
        result = Result.added(self.viewer, plan, whole, source)
        self._results.append(result)
        return result

    def _progress(self, plan: Plan, source: Image, step: Progress | Finished) -> None:
        if isinstance(step, Finished):
            self._finish(self._filling or self._add(plan, step.result, source), step)
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
        result.note(**options, model_sha256=facts.sha256, axes=result.plan.axes.letters, engine=facts.engine)
        if self.amount.value != 1:
            result.set_amount(self.amount.value, self._shown_plane(result))
        megapixels = math.prod(result.plan.axes.shape) / 1e6
        rate = megapixels / max(facts.seconds, 1e-9)
        told = f" {facts.missing}." if facts.missing else ""
        self.tell(f"{options['model']} on {facts.engine}: {facts.seconds:.2g} s, {rate:.3g} megapixels per second.{told}")
        model_list.note_run(facts.sha256, megapixels, rate, facts.engine)
        if self.preview.on:
            self.preview_on.value = False

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
        super()._work_stopped()

    def _drop_unfinished(self) -> None:
        """A large result that was being written goes away with its layer."""
        result, self._filling = self._filling, None
        if result is None:
            return
        self._results = [other for other in self._results if other is not result]
        if self._alive and result.layer in self.viewer.layers:
            self.viewer.layers.remove(result.layer)
        discard(result.whole)

    # After the run

    def _amount_changed(self, amount: float) -> None:
        self.preview.set_amount(amount)
        if self.result is not None and self.result.finished:
            self.result.set_amount(amount, self._shown_plane(self.result))

    def _shown_plane(self, result: Result) -> tuple[int, ...]:
        """The index of the plane on screen in the axes before rows and columns."""
        axes = result.plan.axes
        point = np.round(result.layer.world_to_data(self.viewer.dims.point)).astype(int)[: axes.spatial[0]]
        return tuple(int(min(max(at, 0), extent - 1)) for at, extent in zip(point, axes.shape, strict=False))

    def _preview_changed(self, on: bool) -> None:
        self.preview.set_amount(self.amount.value)
        self.preview.limit = preferences().preview
        (self.preview.start if on else self.preview.stop)()
        self._show_state()

    def _show_result(self, visible: bool) -> None:
        for layer in (self.result.layer if self.result else None, self.preview.layer):
            if layer is not None and layer in self.viewer.layers:
                layer.visible = visible

    def _flicker(self, on: bool) -> None:
        if on:
            self._timer.start(FLICKER)
        else:
            self._timer.stop()
            self._show_result(True)

    def _tick(self) -> None:
        layer = self.result.layer if self.result else self.preview.layer
        self._show_result(layer is not None and not layer.visible)

    def _stop_comparing(self) -> None:
        self.flicker.native.setChecked(False)

    def _add_residual(self) -> None:
        result = self.result
        if result is not None:
            residual = result.residual()
            self.viewer.add_image(residual, **residual_settings(result, residual))

    def code(self, kind: str) -> str:
        """The result, or what is chosen, as Python code or as a command."""
        if self.result is not None:
            plan, amount = self.result.plan, self.result.amount
        else:
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
        for result in [result for result in self._results if event.value == result.layer]:
            result.close()
            self._results.remove(result)
            if result is self._filling:
                self.cancel()
        for result in self._results:
            if event.value == result.source:
                result.source = None
        if event.value == self._followed:
            self._followed = None
        self._stop_comparing()
        self._show_state()

    # Showing and ending

    def _show_state(self) -> None:
        if not self._alive:
            return
        super()._show_state()
        self.stop.enabled = self.busy
        self.run.enabled = not self.busy and self.layer.value is not None
        for button in (self.copy_python, self.copy_command):
            button.enabled = self.layer.value is not None or self.result is not None
        finished = self.result is not None and self.result.finished
        for button in (self.before, self.flicker):
            button.enabled = self.preview.on or finished
        self.residual.enabled = finished

    def close_down(self) -> None:
        """Stop everything, and take the preview away."""
        super().close_down()
        if self._alive:
            self._stop_comparing()
            self.preview_on.value = False
            return
        self.preview.abandon()
        for result in self._results:
            result.close()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a run: its result, who computed it, and how long it took."""

    result: Any
    engine: str
    sha256: str
    seconds: float
    missing: str = ""
    """What was not there and was read as a fill value, in words."""


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
        yield step if step.result is None else Finished(step.result, engine, sha256, time.monotonic() - began, missing)
