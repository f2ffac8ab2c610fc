"""The datasets of the papers' protocol: google/dreambooth and CustomConcept101, as downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.picture import is_picture_file
from ..errors import InputError, nearest
from ..text_files import read_json, read_text
from .prompts import fill, parse_dreambooth, parse_lines

PROMPTS_AND_CLASSES = "prompts_and_classes.txt"
LIVE = ("cat", "dog")  # the classes of google/dreambooth that are alive: prompts with outfits
PLACEHOLDER = "<new1>"  # of CustomConcept101


@dataclass(frozen=True)
class Subject:
    """A subject to learn, and what to draw with it.

    ``training`` and ``templates`` have ``{}`` where the subject stands.
    """

    name: str
    folder: Path  # of its real pictures
    noun: str  # its class in words
    training: str
    templates: tuple[str, ...]

    def training_prompt(self, rare_word: str) -> str:
        return fill(self.training, rare_word, self.noun)


def read_dreambooth(data: Path) -> list[Subject]:
    """The subjects of google/dreambooth, in the order of its list.

    Args:
        data: The repository's folder, or the ``dataset`` in it: a folder of pictures for each
            subject, and ``prompts_and_classes.txt``.

    Raises:
        InputError: The list is missing or damaged.
    """
    folder = data if (data / PROMPTS_AND_CLASSES).exists() else data / "dataset"
    file = folder / PROMPTS_AND_CLASSES
    classes, objects, live = parse_dreambooth(read_text(file, "data: "), str(file))
    return [
        Subject(name, folder / name, noun, "a {}", tuple(live if noun in LIVE else objects))
        for name, noun in classes.items()
    ]


def read_customconcept101(data: Path) -> list[Subject]:
    """The concepts of CustomConcept101, in the order of its list.

    Args:
        data: The folder with ``dataset.json``, ``prompts/`` and ``benchmark_dataset/``.

    Raises:
        InputError: The list or a prompt file is missing or damaged.
    """
    file = data / "dataset.json"
    records = read_json(file, "data: ")
    if not isinstance(records, list) or not records:
        raise InputError(f"data: {file} must be a list of concepts")
    return [_concept(data, file, record) for record in records]


def _concept(data: Path, file: Path, record: Any) -> Subject:
    try:
        prompt, folder = str(record["instance_prompt"]), data / record["instance_data_dir"]
        prompts = data / record["prompt_filename"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"data: a concept in {file} must have instance_prompt, instance_data_dir and "
            f"prompt_filename, got {record!r}"
        ) from error
    before, placeholder, noun = prompt.partition(PLACEHOLDER)
    if not placeholder or not noun.strip():
        raise InputError(f"data: {file}: {prompt!r} must have {PLACEHOLDER} and then a class")
    templates = parse_lines(read_text(prompts, "data: "), str(prompts))
    return Subject(folder.name, folder, noun.strip(), before + "{}", tuple(templates))


READERS: dict[str, Callable[[Path], list[Subject]]] = {
    "dreambooth": read_dreambooth,
    "customconcept101": read_customconcept101,
}


def read_subjects(
    dataset: str, data: str | Path, names: Sequence[str] | None = None
) -> list[Subject]:
    """The subjects of a dataset, or those of the given names, with their pictures there.

    Raises:
        InputError: An unknown dataset or subject; a list, prompts or pictures are missing.
    """
    if dataset not in READERS:
        raise InputError(f"unknown benchmark {dataset!r}: {nearest(dataset, READERS)}")
    data = Path(data).expanduser()
    if not data.is_dir():
        raise InputError(f"data: there is no folder {data}")
    subjects = {subject.name: subject for subject in READERS[dataset](data)}
    wanted = subjects if names is None else dict.fromkeys(names)
    if not wanted:
        raise InputError("subjects must name at least one, got none")
    for name in wanted:
        if name not in subjects:
            raise InputError(f"unknown subject {name!r}: {nearest(name, subjects)}")
    chosen = [subjects[name] for name in wanted]
    without = [each.name for each in chosen if not _has_pictures(each.folder)]
    if without:
        raise InputError(
            f"data: {data} lacks the pictures of {len(without)} of {len(chosen)} subjects "
            f"({', '.join(without[:5])}{', ...' if len(without) > 5 else ''}); "
            "complete it, or name the subjects to take in subjects"
        )
    return chosen


def _has_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(map(is_picture_file, folder.iterdir()))
