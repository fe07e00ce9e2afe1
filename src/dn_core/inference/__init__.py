"""Inference: how an image becomes its denoised version.

An image walks through these modules from top to bottom. What can be decided before the first pixel
is read is decided in `plan`; `run` only does what the plan says. No module calls one above it.

1. `denoise`, `model`: the public functions and `Model`. Arguments become `DenoiseOptions` (in
   `options`).
2. `pipeline`: the next three steps, one after the other.
3. `arrays`: what the image is, as `InputImage`: kind of array, shape and data type. No pixel is
   read.
4. `plan`: a `DenoisePlan`. The network comes from `loaded`, rows and columns from `axes`, device
   and precision from `engines`, the tile grid from `tiling`, and memory is checked.
5. `run` (for dask arrays `lazy`, when a chunk is computed): for each tile, read and scale pixels
   (`planes`), set aside its hot pixels (`hot_pixels`), compute the network (`engines`), and write
   what comes out, rounded, to the result.

Later decisions, such as a noise level estimated from the image or a model chosen by it, belong to
step 4: to `plan.choose_sigma` and `plan.choose_model`.
"""
