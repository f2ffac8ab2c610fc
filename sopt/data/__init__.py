"""Pictures of a subject with their captions, from any layout of folder that trainers use."""

from .intake import describe_pictures, load_pictures, warn_of_enlarging
from .picture import Picture, square_crop, to_pixels, weighted_index

__all__ = [
    "Picture",
    "describe_pictures",
    "load_pictures",
    "square_crop",
    "to_pixels",
    "warn_of_enlarging",
    "weighted_index",
]
