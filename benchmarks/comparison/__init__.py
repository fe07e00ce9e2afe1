"""The parts of compare.py: what is compared, the measurements, the page."""
