"""What all dock widgets share: one piece of work at a time with its progress, a line of words, and noticing that the dock was closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from magicgui.widgets import Container, Label, ProgressBar
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QSizePolicy

from napari_dnresnet.jobs import Job, sentence
from napari_dnresnet.preview import is_preview

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

__all__ = ["Dock", "side_by_side"]


class Dock(Container):
    """A dock widget of the plugin; what is in it comes with `arrange`."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.job: Job | None = None
        self.bar = ProgressBar(value=0, min=0, max=1, visible=False)
        self.status = Label(value="")
        self._alive = True
        self._closing = _Closing(self.native, self.close_down)
        self.native.destroyed.connect(self._gone)

    def arrange(self, *widgets: Any) -> None:
        """Put widgets below each other; labels wrap their words, which can be copied."""
        self.extend(widgets)
        for widget in widgets:
            if isinstance(widget, (Container, Label, ProgressBar)):  # has no name, and so the whole width
                widget.native.parentWidget().layout().itemAt(0).widget().hide()
            if isinstance(widget, Label):
                widget.native.setWordWrap(True)
                widget.native.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
                widget.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def _layers(self, widget: Any = None) -> list[tuple[str, Image]]:
        """The image layers by name, as choices of a magicgui widget; previews are none."""
        from napari.layers import Image

        return [(layer.name, layer) for layer in self.viewer.layers if isinstance(layer, Image) and not is_preview(layer)]

    def reset_choices(self, *args: Any) -> None:
        """The layers or models have changed; napari calls this."""
        if self._alive:
            super().reset_choices(*args)
            self._choices_changed()

    def _choices_changed(self) -> None:
        """Other layers or models can be chosen now."""

    def tell(self, text: str) -> None:
        """Show a sentence."""
        if self._alive:
            self.status.value = text

    def show_progress(self, done: float, total: float) -> None:
        """Move the bar, to be painted with the words: by itself it would paint the whole window at once."""
        self.bar.native.setUpdatesEnabled(False)
        self.bar.max, self.bar.value = total, done
        self.bar.native.setUpdatesEnabled(True)

    # Working

    @property
    def busy(self) -> bool:
        """Whether there is work going on."""
        return self.job is not None

    def work(self, steps: Callable[[], Iterator[Any]], step: Callable[[Any], None], name: str = "") -> None:
        """Begin a piece of work; see `Job`. What it yields reaches `step` while the window is there."""
        self.job = Job(
            steps, step=lambda item: step(item) if self._alive else None, failed=self._failed, stopped=self._work_stopped, name=name
        )
        self._show_state()

    def cancel(self) -> None:
        """Stop after the step at hand; nothing half-done stays."""
        if self.job is not None:
            self.job.cancel()
            self.tell("Cancelled.")

    def _failed(self, error: Exception) -> None:
        self.tell(sentence(error))

    def _work_stopped(self) -> None:
        self.job = None
        self._show_state()

    def _show_state(self) -> None:
        """Show what can be done now."""
        if self._alive:
            self.bar.visible = self.busy

    def close_down(self) -> None:
        """The dock was closed, or the window is gone and must not be touched (`_alive` is false then): stop all work."""
        if self.job is not None:
            self.job.cancel()

    def _gone(self, *_: Any) -> None:
        self._alive = False
        self.close_down()


def side_by_side(*widgets: Any) -> Container:
    """Widgets side by side."""
    return Container(widgets=list(widgets), layout="horizontal", labels=False)


class _Closing(QObject):
    """Calls a function when a widget leaves its dock: a dock's x neither closes nor destroys what is in it."""

    def __init__(self, widget: Any, closed: Callable[[], None]) -> None:
        super().__init__(widget)
        self._closed = closed
        widget.installEventFilter(self)

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """See QObject."""
        if event.type() == QEvent.Type.ParentChange and watched.parent() is None:
            self._closed()
        return False
