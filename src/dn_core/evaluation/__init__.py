"""Measuring models as papers do: the same noise for all, the paper's tables beside ours, its figures."""
