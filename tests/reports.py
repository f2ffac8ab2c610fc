"""Run folders as a run leaves them, and pages as a browser reads them."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sopt.checkpoint import Checkpoint
from sopt.config import TrainConfig
from sopt.report.markup import VOID
from sopt.run_folder import RunFolder, picture_fingerprint
from sopt.schedules import dtap

PROMPT = 'a <script>alert("sks")</script> dog & cat'
STEPS = 40


def save_run(folder, seed=0, steps=STEPS, done=STEPS, **settings):
    """A run folder as a finished run leaves it, with a history of steps drawn at random."""
    rng = np.random.default_rng(seed)
    (folder / "samples").mkdir(parents=True)
    given = {"images": "photos", "prompt": PROMPT, "steps": steps, "output": str(folder)}
    config = TrainConfig.create(**given | settings)
    (folder / "config.yaml").write_text(config.to_yaml())
    with (folder / "history.jsonl").open("w") as file:
        for step in range(1, done + 1):
            timestep = int(rng.integers(1000))
            p_zo = dtap(step, timestep, steps)
            if isinstance(config.schedule, float):
                p_zo = config.schedule
            branch = "zo" if rng.random() < p_zo else "bp"
            entry = {"step": step, "branch": branch, "timestep": timestep, "p_zo": p_zo}
            entry |= {"loss": float(rng.uniform(0.01, 1)), "seconds": 0.5}
            file.write(json.dumps(entry) + "\n")
    if done == steps:
        memory = {"load": 2**20, "train-bp": 9 * 2**20, "process_anonymous": {"at_start": 2**28}}
        (folder / "memory.json").write_text(json.dumps(memory))
        record = {"versions": {"torch": "9.9"}, "seconds": {"load": 3.0, "train-bp": 1e9}}
        (folder / "record.json").write_text(json.dumps(record))
    for name, colour in (("before", "red"), ("after", "green")):
        Image.new("RGB", (64, 64), colour).save(folder / "samples" / f"{name}.png")
    return folder


def save_checkpoint(folder, pictures):
    """What a run that learned from the pictures leaves beside its other files."""
    identity = {"images": picture_fingerprint(pictures)}
    checkpoint = Checkpoint(STEPS, identity, {}, {}, "weights", {"w": torch.zeros(1)}, {})
    checkpoint.save(RunFolder(folder).checkpoint)


class Page(HTMLParser):
    """The elements of a page, (name, attributes), and its text; all are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def words(self):
        return " ".join(self.text)


def page_of(file):
    return Page(Path(file).read_text(encoding="utf-8"))
