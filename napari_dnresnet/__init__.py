"""The napari plugin of DN-ResNet: denoise a layer, train on your own noise, get models."""
