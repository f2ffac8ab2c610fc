"""Lines of results of the tiny benchmark, as its runs write them."""

from sopt.evaluation.tiny.methods import training_settings
from sopt.evaluation.tiny.scores import SCORES
from sopt.tiny.prompts import GROUPS


def line(method, subject, seed, value, chosen=None, peak=None, steps=2):
    """A line whose every score is ``value``."""
    scores = {group: dict.fromkeys(SCORES, value) for group in ("training", *GROUPS)}
    scores["training"]["prompt"] = None
    return {
        "method": method, "subject": subject, "seed": seed, "chosen": chosen or {},
        "settings": training_settings(method, steps, chosen or {}),
        "protocol": {"steps": steps, "images_per_prompt": 2, "sampling_steps": 1, "guidance": 2.0},
        "scores": scores, "peak_bytes": peak, "seconds": {"train": 3.0, "draw": 1.0},
        "core_seconds": 4.0, "forwards": 6, "backwards": 1, "commit": "abc",
    }  # fmt: skip
