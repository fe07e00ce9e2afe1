"""Small plots for dock widgets: a curve over training steps, and crops side by side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QImage, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QWidget

__all__ = ["Crops", "Curve"]

MARGIN = 22


class Curve(QWidget):
    """A value such as a score or a loss over training steps, with a dashed reference line.

    Parameters
    ----------
    caption : str
        Shown below the curve, such as the unit.
    quantity : str
        What is plotted, such as ``"score"``.

    Attributes
    ----------
    points
        Step and value of each point.
    """

    def __init__(self, caption: str, quantity: str) -> None:
        super().__init__()
        self.caption, self.quantity = caption, quantity
        self.points: list[tuple[float, float]] = []
        self.reference = math.nan
        self.setMinimumHeight(70)

    def clear(self) -> None:
        """Remove all points."""
        self.points = []
        self.update()

    def add(self, step: float, value: float, reference: float = math.nan) -> None:
        """Add a point.

        Parameters
        ----------
        step : float
            Where it is on the horizontal axis.
        value : float
            Where it is on the vertical axis.
        reference : float, default math.nan
            Where the dashed line is on the vertical axis; NaN for none.
        """
        self.points.append((step, value))
        self.reference = reference
        self.update()

    def sizeHint(self) -> QSize:
        """See QWidget."""
        return QSize(240, 120)

    def paintEvent(self, event: Any) -> None:
        """See QWidget."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text = self.palette().color(self.foregroundRole())
        painter.setPen(text)
        area = QRectF(self.rect()).adjusted(MARGIN * 2, 6, -8, -MARGIN)
        if not self.points:
            painter.drawText(
                self.rect(), Qt.AlignmentFlag.AlignCenter, f"the {self.quantity} appears here"
            )
            return
        steps, values = np.array(self.points).T
        all_values = [*values, self.reference] if math.isfinite(self.reference) else list(values)
        low, high = min(all_values), max(all_values)
        room = max(high - low, 0.01 * abs(high)) * 0.1
        low, high, last = low - room, high + room, max(steps.max(), 1)

        def place(step: float, value: float) -> QPointF:
            return QPointF(
                area.left() + step / last * area.width(),
                area.bottom() - (value - low) / (high - low) * area.height(),
            )

        painter.drawText(QPointF(2, area.top() + 10), f"{high:.3g}")
        painter.drawText(QPointF(2, area.bottom()), f"{low:.3g}")
        painter.drawText(
            QPointF(area.left(), self.height() - 5.0), f"{self.caption}; {last:.0f} steps"
        )
        if math.isfinite(self.reference):
            painter.setPen(QPen(text, 1, Qt.PenStyle.DashLine))
            painter.drawLine(place(0, self.reference), place(last, self.reference))
        painter.setPen(QPen(QColor("#4a90d9"), 2))
        painter.drawPolyline(QPolygonF([place(step, value) for step, value in self.points]))


class Crops(QWidget):
    """Grey crops side by side, each with its name below, all with the same contrast."""

    def __init__(self) -> None:
        super().__init__()
        self.crops: dict[str, NDArray[np.uint8]] = {}
        self.setMinimumHeight(80)

    def show_crops(self, crops: dict[str, NDArray[Any]]) -> None:
        """Show 2-D crops by name; the first one gives the contrast."""
        first = next(iter(crops.values()))
        low, high = np.percentile(first, (0.5, 99.5))
        scale = 255 / max(float(high - low), 1e-9)
        self.crops = {
            name: np.clip((crop - low) * scale, 0, 255).astype(np.uint8)
            for name, crop in crops.items()
        }
        self.update()

    def sizeHint(self) -> QSize:
        """See QWidget."""
        return QSize(240, 140)

    def paintEvent(self, event: Any) -> None:
        """See QWidget."""
        painter = QPainter(self)
        painter.setPen(self.palette().color(self.foregroundRole()))
        if not self.crops:
            painter.drawText(
                self.rect(), Qt.AlignmentFlag.AlignCenter, "before and after appear here"
            )
            return
        side = min(self.width() / len(self.crops) - 4, self.height() - MARGIN)
        for number, (name, crop) in enumerate(self.crops.items()):
            height, width = crop.shape
            pixels = crop.tobytes()  # QImage does not copy them
            image = QImage(pixels, width, height, width, QImage.Format.Format_Grayscale8)
            left = number * (side + 4)
            painter.drawImage(QRectF(left, 0, side, side * height / width), image)
            painter.drawText(QPointF(left + 2, side * height / width + 14), name)
