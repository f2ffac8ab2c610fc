"""Trainable int8 weights: the codes of a U-Net, or their scales, by forward passes alone."""
