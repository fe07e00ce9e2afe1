"""The parts of microscopy.py: images with their truth, what denoises them, measures, pages."""
