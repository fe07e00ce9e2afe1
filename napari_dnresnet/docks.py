"""The base of all dock widgets: a background task with its progress, a status line, closing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from magicgui.widgets import Container, Label, ProgressBar, Widget
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QSizePolicy

from napari_dnresnet.background import BackgroundTask
from napari_dnresnet.preview import is_preview

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

__all__ = ["Dock", "side_by_side"]


class Dock(Container[Widget]):
    """A dock widget of the plugin; subclasses add their widgets with `arrange`.

    Attributes
    ----------
    task
        The background task that is running, if any.
    bar, status
        Progress bar and status line.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.task: BackgroundTask | None = None
        self.bar = ProgressBar(value=0, min=0, max=1, visible=False)
        self.status = Label(value="")
        self._alive = True
        self._close_filter = _CloseFilter(self.native, self.close_down)
        self.native.destroyed.connect(self._destroyed)

    def arrange(self, *widgets: Any) -> None:
        """Put widgets below each other; labels wrap, and their text can be selected."""
        self.extend(widgets)
        for widget in widgets:
            if isinstance(widget, (Container, Label, ProgressBar)):
                # It has no label of its own; hiding the empty one gives it the whole width.
                widget.native.parentWidget().layout().itemAt(0).widget().hide()
            if isinstance(widget, Label):
                widget.native.setWordWrap(True)
                widget.native.setSizePolicy(
                    QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred
                )
                widget.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def _layers(self, widget: Any = None) -> list[tuple[str, Image]]:
        """The image layers by name, except previews, as choices of a magicgui widget."""
        from napari.layers import Image

        return [
            (layer.name, layer)
            for layer in self.viewer.layers
            if isinstance(layer, Image) and not is_preview(layer)
        ]

    def reset_choices(self, *args: Any) -> None:
        """Update the choices of layers and models; napari calls this when layers change."""
        if self._alive:
            super().reset_choices(*args)
            self._choices_changed()

    def _choices_changed(self) -> None:
        """Called when other layers or models can be chosen."""

    def tell(self, text: str) -> None:
        """Show a sentence in the status line."""
        if self._alive:
            self.status.value = text

    def tell_error(self, error: Exception) -> None:
        """Show what went wrong in the status line."""
        from dn_core.errors import error_message

        self.tell(error_message(error))

    def show_progress(self, done: float, total: float) -> None:
        """Move the progress bar to `done` of `total`; 0 of 0 shows that it is not known.

        Qt would repaint the whole window at once for the bar alone; with updates off it is painted
        together with the status line.
        """
        self.bar.native.setUpdatesEnabled(False)
        self.bar.max, self.bar.value = total, done
        self.bar.native.setUpdatesEnabled(True)

    # Background work

    @property
    def busy(self) -> bool:
        """Whether work is in progress."""
        return self.task is not None

    def work(
        self, steps: Callable[[], Iterator[Any]], step: Callable[[Any], None], name: str = ""
    ) -> None:
        """Start a `BackgroundTask`.

        Parameters
        ----------
        steps : callable
            Called in the thread; returns the iterator.
        step : callable
            Called in the main thread with each item, while the window exists.
        name : str, default ""
            The name under which napari lists the task; empty for none.
        """
        self.task = BackgroundTask(
            steps,
            step=lambda item: step(item) if self._alive else None,
            failed=self._failed,
            stopped=self._work_stopped,
            name=name,
        )
        self._show_state()

    def cancel(self) -> None:
        """Stop the task after the current step; nothing half-done remains."""
        if self.task is not None:
            self.task.cancel()
            self.tell("Cancelled.")

    def _failed(self, error: Exception) -> None:
        self.tell_error(error)

    def _work_stopped(self) -> None:
        self.task = None
        self._show_state()

    def _show_state(self) -> None:
        """Enable what can be used now."""
        if self._alive:
            self.bar.visible = self.busy

    def close_down(self) -> None:
        """Stop all work: the dock was closed.

        If `_alive` is false, the window is gone and must not be touched.
        """
        if self.task is not None:
            self.task.cancel()

    def _destroyed(self, *_: Any) -> None:
        self._alive = False
        self.close_down()


def side_by_side(*widgets: Widget) -> Container[Widget]:
    """Widgets side by side."""
    return Container(widgets=list(widgets), layout="horizontal", labels=False)


class _CloseFilter(QObject):
    """Calls a function when a widget leaves its dock.

    The x of a dock neither closes nor destroys the widget in it.
    """

    def __init__(self, widget: Any, closed: Callable[[], None]) -> None:
        super().__init__(widget)
        self._closed = closed
        widget.installEventFilter(self)

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """See QObject."""
        if event.type() == QEvent.Type.ParentChange and watched.parent() is None:
            self._closed()
        return False
