"""Text-to-image models of the Stable Diffusion kind behind one small interface.

The only modules that know diffusers, transformers and peft. A :class:`Model` knows its
configuration at once and loads a component only when asked, so that each phase of a run holds what
it needs and nothing else.
"""

from .loaded import held_tensors
from .lora import LORA_TARGETS, inject_lora
from .model import Model, Weights
from .opening import open_model

__all__ = ["LORA_TARGETS", "Model", "Weights", "held_tensors", "inject_lora", "open_model"]
