"""Making a network: images in memory (`bank`), settings (`recipes`), one run (`fit`)."""
