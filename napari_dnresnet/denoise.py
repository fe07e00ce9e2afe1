"""The dock widget "Denoise layer"."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

from magicgui.widgets import (
    CheckBox,
    ComboBox,
    FloatSlider,
    FloatSpinBox,
    Label,
    PushButton,
)
from qtpy.QtWidgets import QApplication

from napari_dnresnet.axes_field import NO_IMAGE, AxesField
from napari_dnresnet.background import time_left
from napari_dnresnet.comparison import Comparison
from napari_dnresnet.denoise_run import DenoiseRun, Finished
from napari_dnresnet.docks import Dock, side_by_side
from napari_dnresnet.layers import unwrapped
from napari_dnresnet.models import model_list, model_names
from napari_dnresnet.plan_section import PlanSection
from napari_dnresnet.preview import Preview, PreviewRequest, is_preview
from napari_dnresnet.request import DenoiseRequest
from napari_dnresnet.residuals import is_residual, residual, residual_settings
from napari_dnresnet.results import Result, results
from napari_dnresnet.settings import preferences
from napari_dnresnet.view import shown_plane

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

    from dn_core import Progress

__all__ = ["DenoiseWidget"]

PROGRESS_SECONDS = 0.1
"""Time between changes of the progress bar: each of them repaints the window."""


class DenoiseWidget(Dock):
    """Denoise an image layer: preview, run, cancel, adjust, compare, copy as code."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer)
        self._run: DenoiseRun | None = None
        self._show_after = 0.0
        self._takes_sigma = False
        self._followed: Image | None = None
        self._following = False
        self._described: weakref.ref[Result] | None = None
        self.layer = ComboBox(label="Layer", choices=self._layers, nullable=True)
        self.model = ComboBox(label="Model", choices=model_names)
        self.axes = AxesField(self._settings_changed)
        self.sigma = FloatSpinBox(
            label="Noise level", min=0, max=1e9, value=0, step=1, visible=False
        )
        self.amount = FloatSlider(label="Amount", min=0, max=1, value=1, step=0.01)
        self.fill = CheckBox(text="Keep NaN and infinity", value=False)
        self.preview_on = CheckBox(text="Preview the visible part", value=False)
        self.run = PushButton(text="Denoise")
        self.stop = PushButton(text="Cancel", enabled=False)
        self.before = PushButton(text="Hold to compare")
        self.flicker = PushButton(text="Flicker")
        self.residual = PushButton(text="Show residual")
        self.undo = PushButton(text="Remove result")
        self.copy_python = PushButton(text="Copy as Python")
        self.copy_command = PushButton(text="Copy as command")
        self.description = Label(value="")
        self.preview = Preview(
            viewer, self._preview_request, self.tell, preferences().preview, self.native
        )
        self.plan = PlanSection(self._request)
        self.comparison = Comparison(viewer, self._compared_layers, self.native)
        self._arrange()
        self._connect()
        self._follow()
        self._layer_changed()
        self._model_changed()
        self._show_state()

    def _arrange(self) -> None:
        settings = (
            self.layer,
            self.axes.letters,
            self.axes.description,
            self.model,
            self.sigma,
            self.amount,
            self.fill,
            self.preview_on,
        )
        self.arrange(
            *settings,
            side_by_side(self.run, self.stop),
            self.bar,
            self.status,
            self.description,
            side_by_side(self.before, self.flicker),
            side_by_side(self.residual, self.undo),
            side_by_side(self.copy_python, self.copy_command),
        )
        self.native.layout().insertWidget(len(settings), self.plan)
        self.sigma.tooltip = "Standard deviation of the noise, in the units of the image"
        self.amount.tooltip = "0 is the original, 1 the denoised image"
        self.fill.tooltip = "Denoise around NaN and infinity instead of refusing the image"
        self.before.tooltip = "Shows the original while the button is pressed"
        self.flicker.tooltip = "Alternates between the original and the result"
        self.residual.tooltip = "What was removed, as a layer; it should look like noise"

    def _connect(self) -> None:
        self.layer.changed.connect(self._layer_changed)
        self.axes.letters.changed.connect(self.plan.refresh)  # also if they do not fit
        self.model.changed.connect(self._model_changed)
        for widget in (self.sigma, self.fill):
            widget.changed.connect(self._settings_changed)
        self.amount.changed.connect(self._amount_changed)
        self.preview_on.changed.connect(self._preview_changed)
        self.run.clicked.connect(self.start)
        self.stop.clicked.connect(self.cancel)
        self.before.native.pressed.connect(lambda: self.comparison.show(before=True))
        self.before.native.released.connect(self.comparison.restore)
        self.flicker.native.setCheckable(True)
        self.flicker.native.toggled.connect(self.comparison.flicker)
        self.residual.clicked.connect(self._add_residual)
        self.undo.clicked.connect(self._remove_result)
        self.copy_python.clicked.connect(lambda: self._copy("python"))
        self.copy_command.clicked.connect(lambda: self._copy("command"))
        self.viewer.layers.selection.events.active.connect(self._follow)
        self.viewer.layers.events.removed.connect(self._layer_removed)
        model_list.changed.connect(self._models_changed)
        results.changed.connect(self._results_changed)

    # The chosen layer, model and result

    def reset_choices(self, *args: Any) -> None:
        """See Dock; a layer that changes by itself is not one that the user has chosen."""
        before, self._following = self._following, True
        super().reset_choices(*args)
        self._following = before

    def _choices_changed(self) -> None:
        if self.layer.value is None:  # the chosen one is gone, and napari selects no other
            images = [
                layer
                for _, layer in self._layers()
                if results.of(layer) is None and not is_residual(layer)
            ]
            self.layer.value = images[-1] if images else None
        self._update_result()

    def _models_changed(self) -> None:
        if not self._alive:
            return
        before = self.model.value
        self.model.reset_choices()
        if self.model.value != before:
            self.tell(f"The model {before} is gone; {self.model.value} is chosen now.")

    def _follow(self, event: Any = None) -> None:
        """Choose the layer that is selected, or the source of the result that is."""
        active = self.viewer.layers.selection.active if self._alive else None
        if is_preview(active):  # it comes and goes, and the selection with it for a moment
            return
        if (
            active is not None
            and active != self._followed
            and active in [layer for _, layer in self._layers()]
        ):
            self._followed = active
            result = results.of(active)
            chosen = active if result is None else result.source
            if chosen is not None and chosen in self.viewer.layers and not is_residual(chosen):
                self._following = True
                self.layer.reset_choices()
                self.layer.value = chosen
                self._following = False
        self._update_result()

    @property
    def result(self) -> Result | None:
        """The selected result, otherwise the latest of the chosen layer.

        Amount, comparison, residual and code refer to it.
        """
        selected = results.of(self.viewer.layers.selection.active)
        return selected or results.latest(self.viewer, self.layer.value)

    def _update_result(self) -> None:
        """Show which result the widget refers to now."""
        if not self._alive:
            return
        result, before = self.result, self._described and self._described()
        if result is not before:
            self._described = None if result is None else weakref.ref(result)
            self._stop_comparing()
            if result is not None and result.finished:
                self._show_amount(result)
                if self.task is None and result.summary:
                    self.tell(result.summary)
        self._show_state()

    def _show_amount(self, result: Result) -> None:
        with self.amount.changed.blocked():
            self.amount.value = result.amount
        self.preview.set_amount(result.amount)

    def _results_changed(self) -> None:
        """A result has changed, perhaps in another dock."""
        if not self._alive:
            return
        result = self.result
        if (
            result is not None
            and result.amount != self.amount.value
            and self._described is not None
            and result is self._described()
        ):
            self._show_amount(result)
        self._update_result()

    def _layer_changed(self, *_: Any) -> None:
        layer = self.layer.value
        selected = results.of(self.viewer.layers.selection.active)
        if (
            not self._following
            and selected is not None
            and unwrapped(layer) not in (selected.layer, selected.source)
        ):
            # The user has chosen another layer here: the widget refers to it from now on, not to
            # the selected result.
            latest = results.latest(self.viewer, layer)
            self.viewer.layers.selection.active = layer if latest is None else latest.layer
        self._stop_comparing()
        self.axes.set_layer(layer)
        self._settings_changed()
        self._update_result()

    def _model_changed(self, *_: Any) -> None:
        from dn_core import load_model

        try:
            self._takes_sigma = load_model(self.model.value).config.noise_map
            self.sigma.visible = self._takes_sigma
        except (ValueError, OSError) as error:
            self.tell_error(error)
        self._settings_changed()

    def _settings_changed(self, *_: Any) -> None:
        if self._alive:
            self.preview.refresh()
            self.plan.refresh()

    def denoise_options(self) -> dict[str, Any]:
        """Keywords of `dn_core.denoise_steps`, except the axes and the amount."""
        device = preferences().device
        return {
            "model": self.model.value,
            "sigma": self.sigma.value if self._takes_sigma else None,
            "device": None if device == "auto" else device,
            "nonfinite": "fill" if self.fill.value else "raise",
        }

    def _request(self) -> DenoiseRequest | None:
        from dn_core.models.registry import reference

        axes = self.axes.chosen()
        if axes is None:
            return None
        # With its version, so that what the result says of itself makes it again after an update.
        options = self.denoise_options() | {"model": reference(self.model.value)}
        return DenoiseRequest.of(self.layer.value, axes, options)

    def _preview_request(self) -> PreviewRequest | None:
        axes = self.axes.chosen()
        if axes is None:
            return None
        return PreviewRequest(self.layer.value, axes, self.denoise_options())

    # Running

    def start(self) -> None:
        """Denoise the chosen layer."""
        if self.task is not None:
            return
        try:
            request = self._request()
            if request is None:
                raise ValueError(NO_IMAGE)
            self._stop_comparing()
            run = DenoiseRun(self.viewer, request, self.layer.value, self.amount.value)
        except (ValueError, OSError) as error:
            self._failed(error)
            return
        self._run, self._show_after = run, 0.0
        self.tell("Starting ...")
        self.work(run.steps, lambda step: self._progress(run, step), name=f"denoise {request.name}")

    def _progress(self, run: DenoiseRun, step: Progress | Finished) -> None:
        if isinstance(step, Finished):
            self._finish(run, run.finish(step))
            return
        now = time.monotonic()
        if now > self._show_after:
            self._show_after = now + PROGRESS_SECONDS
            self.show_progress(step.done, step.total)
            parts = (f"{step.done} of {step.total} tiles", time_left(step.seconds_left))
            self.tell(", ".join(filter(None, parts)))
        run.refresh()

    def _finish(self, run: DenoiseRun, result: Result) -> None:
        """All pixels are there."""
        if run.amount != 1:
            result.set_amount(run.amount, self._shown_plane(result))
        if result is self.result:
            self._show_amount(result)
        self.tell(result.summary)
        if self.preview.on and unwrapped(self.layer.value) is result.source:
            self.preview_on.value = False

    def _failed(self, error: Exception) -> None:
        if not self._alive:
            return
        from napari.utils.notifications import show_error

        from dn_core.errors import error_message

        super()._failed(error)
        show_error(error_message(error))
        self._drop_unfinished()

    def _work_stopped(self) -> None:
        if self.task is not None and self.task.cancelled:
            self._drop_unfinished()
        self._run = None
        super()._work_stopped()

    def _drop_unfinished(self) -> None:
        if self._run is not None:
            self._run.drop(alive=self._alive)

    # After the run

    def _amount_changed(self, amount: float) -> None:
        self.preview.set_amount(amount)
        result, run = self.result, self._run
        if run is not None and unwrapped(self.layer.value) is unwrapped(run.source):
            run.amount = amount
        if result is not None and result.finished:
            result.set_amount(amount, self._shown_plane(result))

    def _shown_plane(self, result: Result) -> tuple[int, ...]:
        """Index of the plane on screen, on the axes before rows and columns."""
        return shown_plane(result.layer, self.viewer.dims, result.request.axes)

    def _preview_changed(self, on: bool) -> None:
        self.preview.set_amount(self.amount.value)
        self.preview.limit = preferences().preview
        if on:
            self.preview.start()
        else:
            self.preview.stop()
        self._show_state()

    def _compared_layers(self) -> tuple[Image | None, Image] | None:
        """The original and the preview or result to compare it with."""
        result = self.result
        if self.preview.layer is not None:
            return self.layer.value, self.preview.layer
        return None if result is None else (result.source, result.layer)

    def _stop_comparing(self) -> None:
        self.flicker.native.setChecked(False)
        self.comparison.restore()

    def _add_residual(self) -> None:
        result = self.result
        if result is not None:
            pixels, selected = residual(result), set(self.viewer.layers.selection)
            self.viewer.add_image(pixels, **residual_settings(result, pixels))
            self.viewer.layers.selection = selected  # the widget still refers to the result

    def _remove_result(self) -> None:
        """Remove the result; what it hid is shown again."""
        result = self.result
        if result is None:
            return
        layer, source = result.layer, result.source
        self.viewer.layers.remove(layer)
        if source is not None and source in self.viewer.layers:
            self.viewer.layers.selection.active = source
        self.tell(f"Removed {layer.name}.")

    def code(self, kind: str) -> str:
        """The result, or what is chosen, as ``"python"`` code or as a shell ``"command"``."""
        if self.result is not None:
            return self.result.as_code(kind, self.viewer)
        request = self._request()
        if request is None:
            return ""
        amount = self.amount.value
        return request.as_python(amount) if kind == "python" else request.as_command(amount)

    def _copy(self, kind: str) -> None:
        try:
            code = self.code(kind)
        except ValueError as error:
            self.tell_error(error)
            return
        clipboard = QApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(code)
        where = "napari's console" if kind == "python" else "a shell"
        self.tell(f"Copied. Paste it into {where}.")

    def _layer_removed(self, event: Any) -> None:
        if not self._alive:
            return
        result = results.of(event.value)
        if result is not None:
            result.close()
            if not result.finished and self._run is not None and result is self._run.result:
                self.cancel()
        if event.value == self._followed:
            self._followed = None
        self._stop_comparing()
        self._update_result()

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
        self.description.value = "" if result is None else _description(result)

    def close_down(self) -> None:
        """Stop everything, and remove the preview."""
        super().close_down()
        if self._alive:
            self._stop_comparing()
            self.preview_on.value = False
            self.plan.stop()
            return
        self.plan.abandon()
        self.preview.abandon()
        for result in results.within(self.viewer):
            result.close()


def _description(result: Result) -> str:
    """Which result it is."""
    name = result.request.name if result.source is None else result.source.name
    return f"Result: {result.layer.name}, of {name} with {result.request.options['model']}"
