"""Paper reproduction: the evaluation protocol, tables, figures, baselines and training recipes.

After *DN-ResNet: Efficient Deep Residual Network for Image Denoising* (Ren, El-khamy, Lee).
"""
