"""The dock widget "Train denoiser": a model for a lab's own noise, trained in a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import ComboBox, FloatSpinBox, Label, LineEdit, PushButton, SpinBox

from napari_dnresnet.copies import Copy, remove_abandoned
from napari_dnresnet.docks import Dock, side_by_side
from napari_dnresnet.jobs import Child, sentence, time_left
from napari_dnresnet.layers import default_axes, highest_level, readable
from napari_dnresnet.models import model_list, model_names
from napari_dnresnet.pictures import Crops, Curve
from napari_dnresnet.settings import preferences

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

__all__ = ["TrainWidget", "trainings_folder"]

PAIR, REPEATS, CLEAN = "Noisy layer and its clean one", "Repeats of one scene", "Clean layer, and a noise model"
NOISES = ("gaussian", "poisson", "poisson-gaussian")
WORDS = {
    PAIR: "Both show the same scenes; a long exposure or an average will do as the clean one.",
    REPEATS: "A stack of images of the same scene, each with noise of its own. No clean image is needed.",
    CLEAN: "Noise of the kind and strength given below is put on the clean images.",
}


def trainings_folder() -> Path:
    """Where trainings keep what they need to go on: beside the models."""
    from dn_core.models.registry import models_folder

    return models_folder().parent / "trainings"


class TrainWidget(Dock):
    """Adapt a model to layers; where nothing does better than the model at the start, no new one is made."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer)
        self.child: Child | None = None
        self.copy: Copy | None = None
        remove_abandoned(trainings_folder())
        self.way = ComboBox(label="Learn from", choices=[PAIR, REPEATS, CLEAN], value=PAIR)
        self.words = Label(value=WORDS[PAIR])
        self.noisy = ComboBox(label="Noisy", choices=self._layers, nullable=True)
        self.clean = ComboBox(label="Clean", choices=self._layers, nullable=True)
        self.axis = SpinBox(label="Axis of repeats", value=0, min=0, max=9)
        self.kind = ComboBox(label="Noise", choices=NOISES, value="gaussian")
        self.sigma = FloatSpinBox(label="Sigma", value=10, min=0, max=1e6, step=0.5)
        self.peak = FloatSpinBox(label="Photons at white", value=20, min=0.01, max=1e9)
        self.start_from = ComboBox(label="Start from", choices=model_names)
        self.model_name = LineEdit(label="Name", value="my-noise")
        self.minutes = FloatSpinBox(label="Minutes", value=5, min=0.05, max=100_000, step=1)
        self.begin = PushButton(text="Train")
        self.pause = PushButton(text="Pause")
        self.stop = PushButton(text="Stop, keep best")
        self.use = PushButton(text="Use on a layer")
        self.arrange(
            *(self.way, self.words, self.noisy, self.clean, self.axis, self.kind, self.sigma, self.peak),
            *(self.start_from, self.model_name, self.minutes),
            side_by_side(self.begin, self.pause, self.stop),
            *(self.bar, self.status, self.use),
        )
        self.curve, self.losses, self.crops = Curve("dB; dashed: the start", "score"), Curve("loss", "loss"), Crops()
        for picture in (self.curve, self.losses, self.crops):
            self.native.layout().addWidget(picture)
        self._paused, self._done, self._finished, self._name, self._told_error = False, False, "", "", ""
        self._trained = set[str]()
        self._connect()
        self._way_changed()

    def _connect(self) -> None:
        self.way.changed.connect(self._way_changed)
        self.kind.changed.connect(self._way_changed)
        self.begin.clicked.connect(self.start)
        self.pause.clicked.connect(self.pause_or_go_on)
        self.stop.clicked.connect(self.finish)
        self.use.clicked.connect(self.use_it)
        model_list.changed.connect(self._models_changed)

    # What is chosen

    def _models_changed(self) -> None:
        if self._alive:
            self.start_from.reset_choices()

    def _way_changed(self, *_: Any) -> None:
        way = self.way.value
        self.words.value = WORDS[way]
        self.noisy.visible = way != CLEAN
        self.noisy.label = "Noisy" if way == PAIR else "Repeats"
        self.clean.visible = way != REPEATS
        self.axis.visible = way == REPEATS
        self.kind.visible = way == CLEAN
        self.sigma.visible = way == CLEAN and self.kind.value != "poisson"
        self.sigma.label = "Sigma (grey levels)" if self.kind.value == "gaussian" else "Sigma (photons)"
        self.peak.visible = way == CLEAN and self.kind.value != "gaussian"
        self._show_state()

    def material(self) -> dict[str, Any]:
        """The layers' arrays by the option of ``dn-resnet finetune`` that takes them.

        Raises
        ------
        ValueError
            When a layer is missing.
        """
        wanted = {PAIR: ("noisy", "clean"), REPEATS: ("repeats",), CLEAN: ("clean",)}[self.way.value]
        layers = {"noisy": self.noisy.value, "repeats": self.noisy.value, "clean": self.clean.value}
        if missing := [name for name in wanted if layers[name] is None]:
            raise ValueError(f"there is no {missing[0]} layer; an image layer is expected. Open one, and choose it above.")
        if self.way.value == PAIR and layers["noisy"] == layers["clean"]:
            raise ValueError(f"{layers['noisy'].name} is chosen twice; a noisy layer and its clean one are expected. Change one.")
        material = {name: _planes(layers[name]) for name in wanted}
        if self.way.value == PAIR and material["noisy"].shape != material["clean"].shape:
            shapes = (f"{layers[name].name} has shape {material[name].shape}" for name in wanted)
            raise ValueError(f"{' and '.join(shapes)}; the same is expected. Crop them alike.")
        if self.way.value == REPEATS and self.axis.value >= layers["noisy"].ndim - 2:
            raise ValueError(
                f"the axis of repeats is {self.axis.value}; one before rows and columns, at most {layers['noisy'].ndim - 3}, is expected. "
                "Change it."
            )
        return material

    def arguments(self, material: dict[str, _Planes]) -> list[str]:
        """The options of ``dn-resnet finetune`` but for the images."""
        arguments = ["--name", self.model_name.value.strip(), "--start", self.start_from.value, "--minutes", f"{self.minutes.value:g}"]
        arguments += ["--channel-axis", "none"]  # what is handed over has rows and columns last
        device = preferences().device
        arguments += ["--device", device] if device != "auto" else []
        if self.way.value == REPEATS:
            colours_first = material["repeats"].channels_last
            arguments += ["--axis", str(self.axis.value + colours_first)]
        if self.way.value == CLEAN:
            arguments += ["--noise-kind", self.kind.value]
            arguments += ["--sigma", f"{self.sigma.value:g}"] if self.kind.value != "poisson" else []
            arguments += ["--peak", f"{self.peak.value:g}"] if self.kind.value != "gaussian" else []
        return arguments

    # Running

    def _check_free(self, name: str) -> None:
        """Refuse a name whose model would be lost: only one that was trained here under it is replaced."""
        from dn_core.models import registry

        there = next((entry for entry in registry.entries() if entry.name == name), None)
        trained_here = name in self._trained or (trainings_folder() / f"{name}-training").exists()
        if there is not None and not (there.kind == "own" and trained_here):
            raise ValueError(f"there is a model {name} already ({there.kind}); a new name is expected. Choose another.")

    @property
    def busy(self) -> bool:
        """Whether images are being handed over, or a training runs."""
        return super().busy or self.training

    @property
    def training(self) -> bool:
        """Whether a training runs."""
        return self.child is not None and self.child.running

    def start(self) -> None:
        """Hand the images over and begin, or go on with the training of that name."""
        if self.busy:
            return
        from dn_core.models.index import check_name

        try:
            name = check_name(self.model_name.value.strip())
            self._check_free(name)
            material = self.material()
            arguments = self.arguments(material)
            copy = self.copy = Copy(trainings_folder(), name)
        except (ValueError, OSError) as error:
            self.tell(sentence(error))
            return
        self._name = name
        for curve in (self.curve, self.losses):
            curve.clear()
        self._finished, self._done, self._paused, self._told_error = "", False, False, ""
        without = " without alpha" if any(planes.has_alpha for planes in material.values()) else ""
        self.tell(f"Handing the images over{without} ...")

        def handed_over(files: dict[str, Path]) -> None:
            images = [part for option, path in files.items() for part in (f"--{option}", str(path))]
            command = ["finetune", *images, "--out", str(trainings_folder()), *arguments, "--control"]
            self.child = Child(command, event=self._hear, ended=self._ended)
            self.tell("Starting (the first seconds go into loading torch; the copy of the images is removed at the end) ...")

        self.show_progress(0, 0)
        self.work(lambda: _hand_over(material, copy.folder), handed_over)

    def _work_stopped(self) -> None:
        """All is copied, or nothing will be."""
        super()._work_stopped()
        if not self.training:
            self._remove_copy()

    def _remove_copy(self) -> None:
        if self.copy is not None:
            self.copy.remove()
            self.copy = None

    def _hear(self, event: dict[str, Any]) -> None:
        """A line of the training."""
        if not self._alive:
            return
        what = event["event"]
        if what in ("step", "epoch"):
            self.show_progress(round(1000 * event["part"]), 1000)
            if event["psnr"] is not None:
                gain = event["best"] - event["start_psnr"]
                left = time_left(event["seconds_left"] if event["seconds_left"] is not None else float("nan"))
                self.tell(f"Best {event['best']:.2f} dB, {gain:+.2f} dB over the start. {left}")
        if what in ("step", "epoch") and event["loss"] is not None and event["step"]:
            self.losses.add(event["step"], event["loss"])
        if what == "epoch" and event["psnr"] is not None:
            self.curve.add(event["step"], event["psnr"], event["start_psnr"])
        if what == "preview":
            with np.load(event["path"], allow_pickle=False) as arrays:
                self.crops.show_crops({name: _plane(arrays[name]) for name in ("noisy", "before", "now")})
        if what in ("paused", "resumed"):
            self._paused = what == "paused"
            self.tell("Paused." if self._paused else "Going on.")
            self._show_state()
        if what == "error":
            self._told_error = event["message"]
        if what == "done":
            self._keep(event)

    def _keep(self, event: dict[str, Any]) -> None:
        """Put the finished model, if there is one, into the list of models."""
        from dn_core.models import registry

        name, self._done = self._name, True
        if not event["kept_start"]:
            try:
                self._finished = registry.add(event["path"], replace=True).name
            except (ValueError, OSError) as error:
                self._told_error = f"The model is at {event['path']}, but not in the list: {sentence(error)}"
                return
            self._trained.add(name)
            model_list.changed.emit()
        if not event["stopped"]:  # nothing to go on with: the name is free for another training
            _forget(trainings_folder(), name)
        if not event["kept_start"]:
            gain = event["best"] - event["start_psnr"]
            self.tell(f"Done: {event['best']:.2f} dB, {gain:+.2f} dB over the start. {name} is in every list of models.")
        elif event["stopped"]:
            self.tell("Nothing has done better than the model at the start: there is no new model. Press Train to go on.")
        else:
            self.tell("Nothing did better than the model at the start: there is no new model. Give it more minutes, or more images.")

    def _ended(self, code: int, words: str) -> None:
        self._remove_copy()
        if not self._alive:
            return
        if "belongs to another training" in self._told_error:
            self.tell(f"There is an unfinished training {self._name} on other images or with other settings. Choose another name.")
        elif self._told_error:
            self.tell(sentence(ValueError(self._told_error)))
        elif not self._done:
            self.tell(f"The training ended by itself (code {code}). What it had saved stays; press Train to go on. {words}")
        self._show_state()

    def pause_or_go_on(self) -> None:
        """Pause a training, or go on with it."""
        if self.child is not None and self.training:
            self.child.send("resume" if self._paused else "pause")

    def finish(self) -> None:
        """End now with the best weights so far."""
        if self.child is not None and self.training:
            self.child.send("stop")
            self.tell("Stopping ...")

    def use_it(self) -> None:
        """Open "Denoise layer" with the new model."""
        _, widget = self.viewer.window.add_plugin_dock_widget("napari-dnresnet", "Denoise layer", tabify=True)
        widget.model.reset_choices()
        widget.model.value = self._finished

    # Showing and ending

    def _show_state(self) -> None:
        if not self._alive:
            return
        super()._show_state()
        self.begin.enabled = self.model_name.enabled = not self.busy
        self.pause.enabled = self.stop.enabled = self.training
        self.pause.text = "Go on" if self._paused and self.training else "Pause"
        self.use.enabled = bool(self._finished)

    def close_down(self) -> None:
        """The training saves and ends; Train goes on with it."""
        super().close_down()
        child, self.child = self.child, None
        if child is not None and child.running and self.copy is not None:
            child.leave(self.copy.remove)
            self.copy = None
        elif child is not None:
            child.leave()


def _planes(layer: Image) -> Any:
    """A layer's array with rows and columns last, and without alpha."""
    data = highest_level(layer)
    letters = default_axes(tuple(map(str, layer.axis_labels)), tuple(data.shape), layer.rgb)
    return _Planes(readable(data), letters[-1])


class _Planes:
    """An array that is handed over plane by plane; channels that are last (C) or colours (S, without alpha) come first."""

    def __init__(self, data: Any, last: str) -> None:
        self.data, self.channels_last = data, last in "CS"
        self.has_alpha = last == "S" and data.shape[-1] > 3
        count = min(data.shape[-1], 3) if last == "S" else data.shape[-1]
        self.shape = (count, *data.shape[:-1]) if self.channels_last else tuple(data.shape)
        self.dtype = np.dtype(data.dtype).newbyteorder("=")

    def plane(self, index: tuple[int, ...]) -> Any:
        """The plane at `index` of all axes but the last two."""
        return np.asarray(self.data[(*index[1:], slice(None), slice(None), index[0])] if self.channels_last else self.data[index])


def _hand_over(material: dict[str, _Planes], folder: Path) -> Iterator[dict[str, Path]]:
    """Write arrays to files that the training reads piece by piece."""
    from dn_core.safe_write import free_bytes, replaced_file

    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(int(np.prod(planes.shape, dtype=object)) * planes.dtype.itemsize for planes in material.values())
    if needed > (free := free_bytes(folder)):
        raise OSError(28, f"the images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free there; make room, or crop them", str(folder))
    files = {}
    for option, planes in material.items():
        files[option] = folder / f"{option}.npy"
        header = {"descr": np.lib.format.dtype_to_descr(planes.dtype), "fortran_order": False, "shape": planes.shape}
        with replaced_file(files[option]) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for index in np.ndindex(planes.shape[:-2]):
                file.write(np.ascontiguousarray(planes.plane(index), planes.dtype).data)
    yield files


def _forget(folder: Path, name: str) -> None:
    """Remove what a finished training needed; its model is in the models folder."""
    shutil.rmtree(folder / f"{name}-training", ignore_errors=True)
    (folder / f"{name}.safetensors").unlink(missing_ok=True)


def _plane(array: Any) -> Any:
    return array.reshape(-1, *array.shape[-2:])[0]
