"""Training data: clean images, user images, patches and their augmentation."""
