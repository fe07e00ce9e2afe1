"""The section "Plan": how a layer will be denoised, and why, before it is."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QPushButton, QTextEdit, QVBoxLayout, QWidget

from napari_dnresnet.axes_field import NO_IMAGE
from napari_dnresnet.background import BackgroundTask
from napari_dnresnet.large_results import placeholder
from napari_dnresnet.layers import readable
from napari_dnresnet.request import DenoiseRequest

__all__ = ["PlanSection"]

HEIGHT = 220
"""The least height of the text, in pixels."""
DELAY = 150
"""Milliseconds without a change after which the plan is made."""


class PlanSection(QWidget):
    """A section that shows `dn_core.plan_denoise` when it is open, and follows the settings.

    The plan is made in a thread.

    Parameters
    ----------
    request : callable
        Called in the main thread; returns what would be denoised, or None. It may raise ValueError,
        whose message is shown.

    Attributes
    ----------
    button
        Opens and closes the section.
    text
        Shows the plan.
    """

    def __init__(self, request: Callable[[], DenoiseRequest | None]) -> None:
        super().__init__()
        self._request = request
        self._task: BackgroundTask | None = None
        self.button = QPushButton()
        self.button.setCheckable(True)
        self.button.setToolTip("How the layer will be denoised, and why")
        self.text = QTextEdit()
        self.text.setReadOnly(True)
        self.text.setMinimumHeight(HEIGHT)
        layout = QVBoxLayout(self)
        layout.addWidget(self.button)
        layout.addWidget(self.text)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(DELAY)
        self._timer.timeout.connect(self._compute)
        self.button.toggled.connect(self._toggled)
        self._toggled(False)

    @property
    def is_open(self) -> bool:
        """Whether the plan is shown."""
        return self.button.isChecked()

    @property
    def busy(self) -> bool:
        """Whether a plan is due or being made."""
        return self._timer.isActive() or (self._task is not None and self._task.running)

    def refresh(self, *_: Any) -> None:
        """Make the plan again, if the section is open."""
        if self.is_open:
            self.abandon()
            self._timer.start()

    def stop(self) -> None:
        """Make no plan any more, until something changes."""
        self._timer.stop()
        self.abandon()

    def abandon(self) -> None:
        """Stop without touching the window, which is gone."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _toggled(self, on: bool) -> None:
        self.button.setText("▾ Plan" if on else "▸ Plan")
        self.text.setVisible(on)
        if on:
            self.refresh()
        else:
            self.stop()

    def _compute(self) -> None:
        try:
            request = self._request()
        except ValueError as error:
            self._show_message(str(error))
            return
        if request is None:
            self._show_message(NO_IMAGE)
            return

        def steps() -> Iterator[str]:
            from dn_core import plan_denoise

            out = placeholder(request) if request.is_large else None
            options = request.all_options()
            yield str(plan_denoise(readable(request.data), out=out, **options))

        self._task = BackgroundTask(steps, step=self._show, failed=self._fail)

    def _fail(self, error: Exception) -> None:
        from dn_core.errors import error_message

        self._show_message(error_message(error))

    def _show_message(self, text: str) -> None:
        self.text.setPlainText(text)

    def _show(self, text: str) -> None:
        """Show lines of text, the first word of each in bold."""
        lines = []
        for line in text.splitlines():
            name, _, rest = html.escape(line, quote=False).partition(" ")
            lines.append(f"<b>{name}</b> {rest}" if name else rest)
        self.text.setHtml("<br>".join(lines))
