"""The dock widget "Train denoiser": adapts a model to your own noise, in a child process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import ComboBox, FloatSpinBox, Label, LineEdit, PushButton, SpinBox

from napari_dnresnet.background import time_left
from napari_dnresnet.child_process import ChildProcess
from napari_dnresnet.docks import Dock, side_by_side
from napari_dnresnet.image_copies import ImageCopies, remove_abandoned
from napari_dnresnet.models import model_list, model_names
from napari_dnresnet.plots import Crops, Curve
from napari_dnresnet.settings import preferences
from napari_dnresnet.training_images import (
    PlaneStack,
    forget_training_run,
    plane_stack,
    training_runs_folder,
    write_images,
)

if TYPE_CHECKING:
    import napari

__all__ = ["CLEAN", "PAIR", "REPEATS", "TrainWidget"]

PAIR = "Noisy and clean layer"
REPEATS = "Repeats of one scene"
CLEAN = "Clean layer and a noise model"
NOISES = ("gaussian", "poisson", "poisson-gaussian", "detector")
DESCRIPTIONS = {
    PAIR: "Both layers show the same scenes. The clean one may be a long exposure or an average.",
    REPEATS: "A stack of images of the same scene, each with its own noise. No clean image is "
    "needed.",
    CLEAN: "Noise of the kind and strength below is added to the clean images.",
}
BAR_STEPS = 1000
"""Steps of the progress bar."""


class TrainWidget(Dock):
    """Adapt a model to layers; if nothing scores better than the initial model, none is added."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer)
        self.child: ChildProcess | None = None
        self.copies: ImageCopies | None = None
        remove_abandoned(training_runs_folder())
        self.mode = ComboBox(label="Learn from", choices=[PAIR, REPEATS, CLEAN], value=PAIR)
        self.description = Label(value=DESCRIPTIONS[PAIR])
        self.noisy = ComboBox(label="Noisy", choices=self._layers, nullable=True)
        self.clean = ComboBox(label="Clean", choices=self._layers, nullable=True)
        self.axis = SpinBox(label="Axis of repeats", value=0, min=0, max=9)
        self.kind = ComboBox(label="Noise", choices=NOISES, value="gaussian")
        self.sigma = FloatSpinBox(label="Sigma", value=10, min=0, max=1e6, step=0.5)
        self.peak = FloatSpinBox(label="Peak photon count", value=20, min=0.01, max=1e9)
        self.gain = FloatSpinBox(label="Gain (grey levels an electron)", value=1, max=1e6, step=0.1)
        self.read_noise = FloatSpinBox(label="Read noise (grey levels)", value=2, max=1e6, step=0.5)
        self.offset = FloatSpinBox(label="Offset (grey level)", value=0, max=1e6, step=1)
        self.correlation = FloatSpinBox(label="Correlation (pixels)", value=0, max=16, step=0.1)
        self._noise_options = {
            "gaussian": {"sigma": self.sigma},
            "poisson": {"peak": self.peak},
            "poisson-gaussian": {"sigma": self.sigma, "peak": self.peak},
            "detector": {
                "gain": self.gain,
                "read-noise": self.read_noise,
                "offset": self.offset,
                "correlation": self.correlation,
            },
        }
        """The options of ``dn-resnet finetune`` that each kind of noise has."""
        self.start_from = ComboBox(label="Start from", choices=model_names)
        self.model_name = LineEdit(label="Name", value="my-noise")
        self.minutes = FloatSpinBox(label="Minutes", value=5, min=0.05, max=100_000, step=1)
        self.begin = PushButton(text="Train")
        self.pause = PushButton(text="Pause")
        self.stop = PushButton(text="Stop and keep best")
        self.use = PushButton(text="Use on a layer")
        self.curve = Curve("dB; dashed: initial model", "score")
        self.losses = Curve("loss", "loss")
        self.crops = Crops()
        self._paused, self._done = False, False
        self._name = self._new_model = self._error = self._error_type = ""
        self._trained: set[str] = set()
        """Names of models that were trained in this session, and may be replaced."""
        self._arrange()
        self._connect()
        self._mode_changed()

    def _arrange(self) -> None:
        self.arrange(
            self.mode,
            self.description,
            self.noisy,
            self.clean,
            self.axis,
            self.kind,
            self.sigma,
            self.peak,
            self.gain,
            self.read_noise,
            self.offset,
            self.correlation,
            self.start_from,
            self.model_name,
            self.minutes,
            side_by_side(self.begin, self.pause, self.stop),
            self.bar,
            self.status,
            self.use,
        )
        for plot in (self.curve, self.losses, self.crops):
            self.native.layout().addWidget(plot)
        self.axis.tooltip = "The axis along which the same scene is repeated, counted from 0"
        self.peak.tooltip = "How many photons white (the largest value) stands for"
        self.gain.tooltip = "Grey levels for each photoelectron, from the camera's data sheet"
        self.read_noise.tooltip = "Noise without light: electrons of the data sheet times the gain"
        self.offset.tooltip = "The grey level that the camera gives without light"
        self.correlation.tooltip = "Width of the Gaussian that blurs the noise; 0 for white noise"
        self.start_from.tooltip = "The model that training begins with"
        self.model_name.tooltip = "Name of the new model"
        self.stop.tooltip = "End now with the best weights so far"
        self.use.tooltip = "Open Denoise layer with the new model"

    def _connect(self) -> None:
        self.mode.changed.connect(self._mode_changed)
        self.kind.changed.connect(self._mode_changed)
        self.begin.clicked.connect(self.start)
        self.pause.clicked.connect(self.pause_or_resume)
        self.stop.clicked.connect(self.finish)
        self.use.clicked.connect(self.use_model)
        model_list.changed.connect(self._models_changed)

    # Settings

    def _models_changed(self) -> None:
        if self._alive:
            self.start_from.reset_choices()

    def _mode_changed(self, *_: Any) -> None:
        mode, noise = self.mode.value, self.kind.value
        self.description.value = DESCRIPTIONS[mode]
        self.noisy.visible = mode != CLEAN
        self.noisy.label = "Noisy" if mode == PAIR else "Repeats"
        self.clean.visible = mode != REPEATS
        self.axis.visible = mode == REPEATS
        self.kind.visible = mode == CLEAN
        self.sigma.label = "Sigma (grey levels)" if noise == "gaussian" else "Sigma (photons)"
        for options in self._noise_options.values():
            for setting in options.values():
                setting.visible = False
        if mode == CLEAN:
            for setting in self._noise_options[noise].values():
                setting.visible = True
        self._show_state()

    def training_images(self) -> dict[str, PlaneStack]:
        """The chosen layers' arrays, by the option of ``dn-resnet finetune`` that takes them.

        Raises
        ------
        ValueError
            When a layer is missing, or does not fit.
        """
        mode, axis = self.mode.value, self.axis.value
        options = {PAIR: ("noisy", "clean"), REPEATS: ("repeats",), CLEAN: ("clean",)}[mode]
        layers = {"noisy": self.noisy.value, "repeats": self.noisy.value, "clean": self.clean.value}
        for option in options:
            if layers[option] is None:
                raise ValueError(f"There is no {option} layer. Open an image, and choose it above.")
        if mode == PAIR and layers["noisy"] == layers["clean"]:
            raise ValueError(
                f"Choose two different layers; {layers['noisy'].name} is chosen for both."
            )
        images = {option: plane_stack(layers[option]) for option in options}
        if mode == PAIR and images["noisy"].shape != images["clean"].shape:
            shapes = [f"{layers[option].name} {images[option].shape}" for option in options]
            raise ValueError(
                "The noisy and the clean layer must have the same shape, got "
                f"{' and '.join(shapes)}. Crop them to the same size."
            )
        last = layers["noisy"].ndim - 3 if mode == REPEATS else 0
        if mode == REPEATS and axis > last:
            raise ValueError(
                "The axis of repeats must come before rows and columns, at most "
                f"{last}, got {axis}. Change it."
            )
        return images

    def arguments(self, images: dict[str, PlaneStack]) -> list[str]:
        """The options of ``dn-resnet finetune``, except the images."""
        arguments = ["--name", self.model_name.value.strip()]
        arguments += ["--start", self.start_from.value]
        arguments += ["--minutes", f"{self.minutes.value:g}"]
        arguments += ["--channel-axis", "none"]  # a `PlaneStack` has rows and columns last
        device, noise = preferences().device, self.kind.value
        if device != "auto":
            arguments += ["--device", device]
        if self.mode.value == REPEATS:
            arguments += ["--axis", str(self.axis.value + images["repeats"].channels_last)]
        if self.mode.value == CLEAN:
            arguments += ["--noise-kind", noise]
            for option, setting in self._noise_options[noise].items():
                arguments += [f"--{option}", f"{setting.value:g}"]
        return arguments

    # Running

    def _check_free(self, name: str) -> None:
        """Refuse the name of another model; only one that was trained here is replaced."""
        from dn_core.models import registry

        trained_here = (
            name in self._trained or (training_runs_folder() / f"{name}-training").exists()
        )
        for entry in registry.entries():
            if entry.name == name and not (entry.kind == "own" and trained_here):
                raise ValueError(
                    f"Name must be new, got {name}, which is a model already ({entry.kind}). "
                    "Choose another name."
                )

    @property
    def busy(self) -> bool:
        """Whether images are being copied, or a training run is going on."""
        return super().busy or self.training

    @property
    def training(self) -> bool:
        """Whether a training run is going on."""
        return self.child is not None and self.child.running

    def start(self) -> None:
        """Copy the images and start a training run, or resume the one of that name."""
        if self.busy:
            return
        from dn_core.models.index import check_name

        try:
            name = check_name(self.model_name.value.strip())
            self._check_free(name)
            images = self.training_images()
            arguments = self.arguments(images)
            copies = self.copies = ImageCopies(training_runs_folder(), name)
        except (ValueError, OSError) as error:
            self.tell_error(error)
            return
        self._name = name
        self.curve.clear()
        self.losses.clear()
        self._new_model = self._error = self._error_type = ""
        self._done, self._paused = False, False

        def copied(files: dict[str, Path]) -> None:
            options = [
                part for option, path in files.items() for part in (f"--{option}", str(path))
            ]
            out = ["--out", str(training_runs_folder())]
            self.child = ChildProcess(
                ["finetune", *options, *out, *arguments, "--control"],
                event=self._receive,
                ended=self._ended,
            )
            self.tell("Starting; loading torch takes some seconds ...")

        without = " without alpha" if any(stack.has_alpha for stack in images.values()) else ""
        self.tell(f"Copying the images{without}; the copies are removed at the end ...")
        self.show_progress(0, 0)
        self.work(lambda: write_images(images, copies.folder), copied)

    def _work_stopped(self) -> None:
        """All images are copied, or copying was cancelled or has failed."""
        super()._work_stopped()
        if not self.training:
            self._remove_copies()

    def _remove_copies(self) -> None:
        if self.copies is not None:
            self.copies.remove()
            self.copies = None

    def _receive(self, event: dict[str, Any]) -> None:
        """A line of the training run; see `dn_core.json_lines`."""
        if not self._alive:
            return
        kind = event["kind"]
        if kind in ("step", "epoch"):
            self._show_step(event)
        elif kind == "preview":
            with np.load(event["path"], allow_pickle=False) as arrays:
                crops = {name: _first_plane(arrays[name]) for name in ("noisy", "before", "now")}
            self.crops.show_crops(crops)
        elif kind in ("paused", "resumed"):
            self._paused = kind == "paused"
            self.tell("Paused." if self._paused else "Resumed.")
            self._show_state()
        elif kind == "error":
            self._error, self._error_type = event["message"], event["type"]
        elif kind == "done":
            self._finished(event)

    def _show_step(self, event: dict[str, Any]) -> None:
        self.show_progress(round(BAR_STEPS * event["fraction"]), BAR_STEPS)
        step, psnr = event["step"], event["psnr"]
        if event["loss"] is not None and step:
            self.losses.add(step, event["loss"])
        if psnr is None:
            return
        if event["kind"] == "epoch":
            self.curve.add(step, psnr, event["start_psnr"])
        self.tell(f"Best {_score(event)} {time_left(event['seconds_left'])}")

    def _finished(self, event: dict[str, Any]) -> None:
        """Add the new model, if there is one, to the list of models."""
        from dn_core.errors import error_message
        from dn_core.models import registry

        name, kept_start, stopped = self._name, event["kept_start"], event["stopped"]
        self._done = True
        if not kept_start:
            try:
                self._new_model = registry.add(event["path"], replace=True).name
            except (ValueError, OSError) as error:
                self._error = (
                    f"The model {event['path']} could not be added to the list of models: "
                    f"{error_message(error)}"
                )
                return
            self._trained.add(name)
            model_list.changed.emit()
        if not stopped:  # nothing to resume: the name is free for another training run
            forget_training_run(training_runs_folder(), name)
        if not kept_start:
            self.tell(f"Done: {_score(event)} {name} can be chosen in all lists of models.")
        elif stopped:
            self.tell(
                "No new model: nothing has scored better than the initial model so far. Press "
                "Train to resume."
            )
        else:
            self.tell(
                "No new model: nothing scored better than the initial model. Train for longer, or "
                "on more images."
            )

    def _ended(self, code: int, text: str) -> None:
        self._remove_copies()
        if not self._alive:
            return
        if self._error_type == "OtherRunError":
            self.tell(
                f"There is an unfinished training run {self._name} with other images or settings. "
                "Choose another name."
            )
        elif self._error_type == "OtherVersionError":
            self.tell(
                f"Another version of the plugin began the training run {self._name}, which cannot "
                "be resumed. Choose another name."
            )
        elif self._error:
            self.tell(self._error)
        elif not self._done:
            self.tell(
                f"The training run ended unexpectedly (exit code {code}). Press Train to resume "
                f"it from where it was last saved. {text}"
            )
        self._show_state()

    def pause_or_resume(self) -> None:
        """Pause the training run, or resume it."""
        if self.child is not None and self.training:
            self.child.send("resume" if self._paused else "pause")

    def finish(self) -> None:
        """End now with the best weights so far."""
        if self.child is not None and self.training:
            self.child.send("stop")
            self.tell("Stopping ...")

    def use_model(self) -> None:
        """Open "Denoise layer" with the new model."""
        _, widget = self.viewer.window.add_plugin_dock_widget(
            "napari-dnresnet", "Denoise layer", tabify=True
        )
        widget.model.reset_choices()
        widget.model.value = self._new_model

    # Showing and ending

    def _show_state(self) -> None:
        if not self._alive:
            return
        super()._show_state()
        self.begin.enabled = self.model_name.enabled = not self.busy
        self.pause.enabled = self.stop.enabled = self.training
        self.pause.text = "Resume" if self._paused and self.training else "Pause"
        self.use.enabled = bool(self._new_model)

    def close_down(self) -> None:
        """Let the training run save and exit; Train resumes it."""
        super().close_down()
        child, self.child = self.child, None
        if child is not None and child.running and self.copies is not None:
            child.leave(self.copies.remove)
            self.copies = None
        elif child is not None:
            child.leave()


def _score(event: dict[str, Any]) -> str:
    """The best score so far, and what was gained."""
    best, gain = event["best_psnr"], event["best_psnr"] - event["start_psnr"]
    return f"{best:.2f} dB, {gain:+.2f} dB from the initial model."


def _first_plane(array: Any) -> Any:
    return array.reshape(-1, *array.shape[-2:])[0]
