"""``evaluate``: the scores of pictures that are there already.

What takes seconds to import is imported on use: the command line reads signature and defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..settings_file import settings_of_run
from ..text_files import read_json
from .prompts import without_word

if TYPE_CHECKING:
    from ..data import Picture

DINO = "facebook/dino-vits16"
CLIP = "openai/clip-vit-base-patch32"
PROMPTS_FILE = "prompts.json"
SAMPLES = "samples"


def evaluate(
    images: Any,
    references: Any,
    *,
    prompts: Any = None,
    rare_word: str = "sks",
    dino: str = DINO,
    clip: str = CLIP,
    batch_size: int = 16,
    device: str | None = None,
) -> dict[str, Any]:
    """Score pictures drawn of one subject against real ones and against their prompts.

    DINO and CLIP-I are mean cosines over all pairs of a drawn and a real picture, CLIP-T that of a
    picture and its prompt without the rare word, diversity the mean of 1 - cosine (DINO) between
    pictures of one prompt: :meth:`~sopt.evaluation.metrics.Scorer.score` has the formulas. Scores
    by different backbones are not comparable, so their names are in the result. Copies of the real
    pictures score highest in DINO and CLIP-I: look at CLIP-T, diversity and the pictures too.

    Args:
        images: The drawn pictures: a folder, or one with ``samples/`` and ``prompts.json`` as
            :func:`~sopt.evaluation.benchmarking.benchmark` writes them; files; or PIL images.
        references: Real pictures of the subject: a folder, files, or PIL images.
        prompts: One text for all drawn pictures, or a mapping (or its JSON file) from the name of
            each picture's file, without ending, to its prompt; the folder's ``prompts.json`` if
            not given.
        rare_word: The rare word, taken out of the prompts.
        dino, clip: Backbones: folders that ``save_pretrained`` wrote, of CLIP the model's and its
            tokenizer's, or hub ids.
        batch_size: Pictures embedded at once.
        device: Where to compute; the GPU if there is one, if not given.

    Returns:
        ``dino``, ``clip_i``, ``clip_t``, ``diversity`` (None with one picture a prompt), numbers of
        ``images``, ``references`` and ``prompts``, and ``backbones``: name and checksum.

    Raises:
        InputError: Pictures or prompts are missing or damaged, or a backbone is not there.

    Example:
        >>> evaluate("drawn", "photos/dog", prompts="a sks dog on the beach")["dino"]
    """
    from .metrics import Scorer

    folder = Path(images) / SAMPLES if isinstance(images, (str, Path)) else None
    source = folder if folder is not None and folder.is_dir() else images
    pictures = subject_pictures(source, "drawn", "images")
    _check_trained(pictures)
    prompts = _prompts(images, prompts)
    real = subject_pictures(references, "real", "references")
    drawn = group_by_prompt(pictures, prompts, rare_word)
    scorer = Scorer(dino, clip, device, batch_size)
    return scorer.score(real, drawn).to_dict() | {"backbones": scorer.backbones}


def _check_trained(pictures: Sequence[Picture]) -> None:
    from ..run_folder import RunFolder

    for file in (each.source for each in pictures if isinstance(each.source, Path)):
        run = RunFolder(file.resolve().parent.parent)
        if file.resolve() == run.before and settings_of_run(run.path):
            raise InputError(
                f"images: {file} is of a run, from before its training: draw some with "
                f"`sopt generate --adapter {run.path}`, or name {run.after.name} alone"
            )


def subject_pictures(source: Any, prompt: str, argument: str) -> list[Picture]:
    """The pictures of a source without those of the class alone, such as kohya's ``reg/``; messages
    begin with the argument's name."""
    from ..data import load_pictures

    found = load_pictures(source, prompt, argument=argument)
    return [each for each in found if not each.regularization]


def group_by_prompt(
    pictures: list[Picture], prompts: str | Mapping[str, str], rare_word: str
) -> list[tuple[str, list[Picture]]]:
    """Each prompt without the rare word, and its pictures, in the order of the prompts.

    Raises:
        InputError: A picture without a prompt, a prompt's picture that is not there, two pictures
            of one name, or a prompt of the rare word alone.
    """
    if isinstance(prompts, str):
        return [(_shown(prompts, rare_word), pictures)]
    by_name: dict[str, Picture] = {}
    for picture in pictures:
        first = by_name.setdefault(Path(picture.name).stem, picture)
        if first is not picture:
            raise InputError(
                f"images: prompts cannot tell {first.name} and {picture.name} apart, which have "
                "one name without the ending"
            )
    missing = [name for name in prompts if name not in by_name]
    if missing:
        raise InputError(
            f"images: {len(missing)} of the {len(prompts)} pictures that prompts names are not "
            f"there: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    if strangers := [name for name in by_name if name not in prompts]:
        raise InputError(f"prompts names no prompt for the picture {strangers[0]!r}")
    groups: dict[str, list[Picture]] = {}
    for name, prompt in prompts.items():
        groups.setdefault(_shown(prompt, rare_word), []).append(by_name[name])
    return list(groups.items())


def _shown(prompt: str, rare_word: str) -> str:
    """The prompt in words that CLIP knows."""
    words = without_word(prompt, rare_word)
    if not words:
        raise InputError(
            f"prompts must say more than the rare word {rare_word!r}, which is left out for CLIP, "
            f"got {prompt!r}"
        )
    return words


def _prompts(images: Any, prompts: Any) -> str | Mapping[str, str]:
    if prompts is None:
        beside = Path(images) / PROMPTS_FILE if isinstance(images, (str, Path)) else None
        if beside is None or not beside.is_file():
            raise InputError(
                f"prompts is missing: one text for all pictures, or a JSON file from names to "
                f"texts ({PROMPTS_FILE} in the folder of images is found by itself)"
            )
        prompts = beside
    if isinstance(prompts, Path) or (isinstance(prompts, str) and prompts.endswith(".json")):
        prompts = read_json(Path(prompts), "prompts: ")
    texts = [prompts] if isinstance(prompts, str) else list(_values(prompts))
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"prompts must be texts that are not empty, got {prompts!r}")
    return prompts


def _values(prompts: Any) -> Any:
    return prompts.values() if isinstance(prompts, Mapping) else [None]
