"""The dock widget "Denoise layer"."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container, FloatSlider, FloatSpinBox, Label, LineEdit, ProgressBar, PushButton
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from napari_dnresnet.docks import Closing, image_layers, side_by_side
from napari_dnresnet.jobs import Job, sentence, time_left
from napari_dnresnet.layers import Axes, default_axes, highest_level, readable
from napari_dnresnet.models import model_list, model_names
from napari_dnresnet.preview import Preview, Wish
from napari_dnresnet.results import METADATA, Plan, Result, empty_target, model_hash, residual_settings
from napari_dnresnet.settings import preferences

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

__all__ = ["DenoiseWidget"]

FLICKER = 600
"""Milliseconds between before and after."""
FILLING = 500
"""Milliseconds between looks at a large result that is being written."""


class DenoiseWidget(Container):
    """Denoise an image layer: preview, run, cancel, adjust, compare, copy as code."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        self.viewer = viewer
        self.result: Result | None = None
        self.job: Job | None = None
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
        self.bar = ProgressBar(value=0, min=0, max=1, visible=False)
        self.before = PushButton(text="Hold: before")
        self.flicker = PushButton(text="Flicker")
        self.residual = PushButton(text="Residual")
        self.copy_python = PushButton(text="Copy as Python")
        self.copy_command = PushButton(text="Copy as command")
        self.status = Label(value="")
        super().__init__(
            widgets=[
                *(self.layer, self.axes, self.words, self.model, self.noise, self.amount, self.fill, self.preview_on),
                side_by_side(self.run, self.stop),
                *(self.bar, self.status),
                side_by_side(self.before, self.flicker, self.residual),
                side_by_side(self.copy_python, self.copy_command),
            ],
        )
        self._alive = True
        for label in (self.words, self.status):
            label.native.setWordWrap(True)
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
        self._watch = Closing(self.native, self.close_down)
        self.native.destroyed.connect(self._gone)
        model_list.changed.connect(self._models_changed)

    # What is chosen

    def _layers(self, widget: Any = None) -> list[tuple[str, Image]]:
        return image_layers(self.viewer)

    def reset_choices(self, *args: Any) -> None:
        """The layers or models have changed; napari calls this."""
        if self._alive:
            super().reset_choices(*args)

    def _models_changed(self) -> None:
        if self._alive:
            self.model.reset_choices()

    def _follow(self, event: Any = None) -> None:
        """Take the layer that is selected, unless it is one of our own results."""
        active = self.viewer.layers.selection.active
        if not self._alive or active not in [layer for _, layer in self._layers()] or METADATA in active.metadata:
            return
        self.layer.reset_choices()
        self.layer.value = active

    def _layer_changed(self, *_: Any) -> None:
        layer = self.layer.value
        if layer is None:
            self.axes.value, self.words.value = "", "Open an image, or File > Open Sample > DnResNet."
        else:
            data = highest_level(layer)
            self.axes.value = default_axes(tuple(map(str, layer.axis_labels)), tuple(data.shape), layer.rgb)
            self._axes_changed()
        self.preview.refresh()
        self._show_state()

    def _axes_changed(self, *_: Any) -> None:
        try:
            axes = self.chosen_axes()
        except ValueError as error:
            self.words.value = sentence(error)
        else:
            self.words.value = axes.in_words() if axes else ""
            self.preview.refresh()

    def chosen_axes(self) -> Axes | None:
        """The axes as they are typed; None without a layer."""
        layer = self.layer.value
        return None if layer is None else Axes(self.axes.value.strip().upper(), tuple(highest_level(layer).shape))

    def _model_changed(self, *_: Any) -> None:
        from dn_core.inference.denoise import load_model

        try:
            self.noise.visible = load_model(self.model.value).config.noise_map
        except (ValueError, OSError) as error:
            self.tell(sentence(error))
        self.preview.refresh()

    def options(self) -> dict[str, Any]:
        """The options of `dn_core.denoise_steps`, but for axes and amount."""
        device = preferences().device
        return {
            "model": self.model.value,
            "noise": self.noise.value if self.noise.visible else None,
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
            plan = Plan.of(self.layer.value, axes, self.options())
            large = plan.is_large
            target = (
                empty_target(plan, preferences().folder) if large else np.empty(axes.shape, np.dtype(plan.data.dtype).newbyteorder("="))
            )
        except (ValueError, OSError) as error:
            self._fail(error)
            return
        self._stop_comparing()
        self.result = Result.added(self.viewer, plan, target, 1.0) if large else None
        self._began, self._seconds = time.monotonic(), 0.0
        self.job = Job(
            lambda: _denoising(plan, target),
            step=lambda step: self._progress(plan, step),
            failed=self._fail,
            done=self._done,
            stopped=self._stopped,
            name=f"denoise {plan.name}",
        )
        self.tell("Starting the engine ...")
        self._show_state()

    def cancel(self) -> None:
        """Stop after the tile at hand; nothing half-done stays."""
        if self.job is not None:
            self.job.cancel()
            self.tell("Cancelled.")

    def _progress(self, plan: Plan, step: Any) -> None:
        if not self._alive:
            return
        self.bar.max, self.bar.value = step.total, step.done
        if step.result is None:
            self.tell(f"{step.done} of {step.total} tiles {', ' * (step.done > 0)}{time_left(step.seconds_left)}")
            if self.result is not None and time.monotonic() - self._began > FILLING / 1000:
                self._began = time.monotonic()
                self.result.layer.refresh()
            return
        if self.result is None:
            self.result = Result.added(self.viewer, plan, step.result, self.amount.value)
        else:
            self.result.layer.refresh()
            self.result.set_amount(self.amount.value)
        self._facts = step

    def _done(self) -> None:
        if not self._alive or self.result is None:
            return
        result, facts = self.result, self._facts
        pixels = math.prod(result.plan.axes.shape) / 1e6
        model = str(result.plan.options["model"])
        result.note(
            **{key: value for key, value in result.plan.options.items() if value is not None},
            model_sha256=facts.sha256,
            axes=result.plan.axes.letters,
            engine=facts.engine,
        )
        self.tell(f"{model} on {facts.engine}: {facts.seconds:.2g} s, {pixels / max(facts.seconds, 1e-9):.3g} megapixels per second.")
        if self.preview.on:
            self.preview_on.value = False

    def _fail(self, error: Exception) -> None:
        if not self._alive:
            return
        from napari.utils.notifications import show_error

        self.tell(sentence(error))
        show_error(sentence(error))
        self._drop_unfinished()

    def _stopped(self) -> None:
        if self.job is not None and self.job.cancelled:
            self._drop_unfinished()
        self.job = None
        self._show_state()

    def _drop_unfinished(self) -> None:
        """A large result that was being written goes away with its layer."""
        result = self.result
        if self.job is None or result is None or "engine" in result.layer.metadata.get(METADATA, {}):
            return
        self.result = None
        if self._alive and result.layer in self.viewer.layers:
            self.viewer.layers.remove(result.layer)

    # After the run

    def _amount_changed(self, amount: float) -> None:
        self.preview.set_amount(amount)
        if self.result is not None and self.job is None:
            axes = self.result.plan.axes
            lead = axes.spatial[0]
            point = np.round(self.result.layer.world_to_data(self.viewer.dims.point)).astype(int)[:lead]
            self.result.set_amount(amount, tuple(int(min(max(at, 0), extent - 1)) for at, extent in zip(point, axes.shape, strict=False)))

    def _preview_changed(self, on: bool) -> None:
        self.preview.set_amount(self.amount.value)
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
        if self.result is not None:
            residual = self.result.residual()
            self.viewer.add_image(residual, **residual_settings(self.result, residual))

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
        QApplication.clipboard().setText(self.code(kind))
        self.tell("Copied. " + ("Paste it into napari's console." if kind == "python" else "Paste it into a shell."))

    def _layer_removed(self, event: Any) -> None:
        if not self._alive or self.result is None or event.value != self.result.layer:
            return
        self.result.close()
        self.result = None
        self._stop_comparing()
        self.cancel()
        self._show_state()

    # Showing and ending

    def tell(self, text: str) -> None:
        """Show a sentence."""
        if self._alive:
            self.status.value = text

    def _show_state(self) -> None:
        if not self._alive:
            return
        busy = self.job is not None
        self.bar.visible = self.stop.enabled = busy
        self.run.enabled = not busy and self.layer.value is not None
        for button in (self.copy_python, self.copy_command):
            button.enabled = self.layer.value is not None or self.result is not None
        for button in (self.before, self.flicker):
            button.enabled = self.preview.on or (self.result is not None and not busy)
        self.residual.enabled = self.result is not None and not busy

    def close_down(self) -> None:
        """The dock was closed: stop everything, take the preview away."""
        if self._alive:
            self.cancel()
            self._stop_comparing()
            self.preview_on.value = False

    def _gone(self, *_: Any) -> None:
        self._alive = False
        self.preview.abandon()
        if self.job is not None:
            self.job.cancel()
        if self.result is not None:
            self.result.close()


class _Facts:
    """The last step of a run, with who computed it and how long it took."""

    def __init__(self, step: Any, engine: str, sha256: str, seconds: float) -> None:
        self.done, self.total, self.seconds_left, self.result = step.done, step.total, step.seconds_left, step.result
        self.engine, self.sha256, self.seconds = engine, sha256, seconds


def _denoising(plan: Plan, target: Any) -> Iterator[Any]:
    """The steps of a run; the last one comes with its facts."""
    from dn_core.inference.denoise import denoise_steps, engine_name
    from dn_core.models.registry import resolve

    options = plan.all_options()
    engine, sha256 = engine_name(options["model"], options["device"], plan.data.dtype), model_hash(resolve(options["model"]))
    began = time.monotonic()
    for step in denoise_steps(readable(plan.data), out=target, **options):
        yield step if step.result is None else _Facts(step, engine, sha256, time.monotonic() - began)
