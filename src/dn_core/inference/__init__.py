"""Using a network: tiles, engines, `denoise`."""
