"""``benchmark``: train on every subject of a dataset, draw every prompt, and score.

What takes seconds to import is imported on use: the command line reads signature and defaults.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..errors import InputError, NotFiniteError
from ..sampling import SEEDS_A_PROMPT, generate, picture_grid, png_bytes
from ..settings_file import settings_of_run
from ..text_files import read_object
from .claims import BENCHMARK_FILE, SUBJECT_FILE, claim, compare
from .evaluating import CLIP, DINO, PROMPTS_FILE, SAMPLES, group_by_prompt, subject_pictures
from .prompts import fill

if TYPE_CHECKING:
    from .datasets import Subject

logger = logging.getLogger(__name__)

METRICS = ("dino", "clip_i", "clip_t", "diversity")
PUBLISHED = {  # subjects, prompts of each, pictures of each prompt
    "dreambooth": (30, 25, 4),
    "customconcept101": (101, 20, 4),
}
GRID_CELL = 192  # pixels, most in a grid
GRID = "grid.png"
PROMPTS_AT_ONCE = 5  # for each so many the model is loaded once; their pictures are in memory


@dataclass(frozen=True)
class Protocol:
    """What is drawn and how; with the training settings it decides every score."""

    dataset: str
    num_prompts: int | None
    images_per_prompt: int
    rare_word: str
    sampling_steps: int
    guidance: float
    sampling_seed: int
    batch_size: int
    dino: str
    clip: str

    def check(self) -> None:
        wholes = {"images_per_prompt": SEEDS_A_PROMPT, "sampling_steps": 2**16, "batch_size": 2**16}
        if self.num_prompts is not None:
            wholes["num_prompts"] = 2**16
        for name, most in wholes.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{name} must be a whole number in [1, {most}], got {value!r}")
        if not isinstance(self.sampling_seed, int) or not 0 <= self.sampling_seed < 2**63:
            raise InputError(
                f"sampling_seed must be a whole number in [0, 2**63), got {self.sampling_seed!r}"
            )
        if not isinstance(self.guidance, (int, float)) or not math.isfinite(self.guidance):
            raise InputError(f"guidance must be a finite number, got {self.guidance!r}")
        if not self.rare_word.strip():
            raise InputError(f"rare_word must be a word, got {self.rare_word!r}")

    def seed(self, prompt: int) -> int:
        """Of the first picture of a prompt, by its number from 0; the next has the next seed."""
        return self.sampling_seed + SEEDS_A_PROMPT * prompt

    def check_prompts(self, subject: Subject) -> None:
        known = len(subject.templates)
        if self.num_prompts is not None and self.num_prompts > known:
            raise InputError(
                f"num_prompts must be at most {known}, which the dataset has for {subject.name}, "
                f"got {self.num_prompts}"
            )

    def prompts(self, subject: Subject) -> list[str]:
        """What the model is asked to draw."""
        chosen = subject.templates[: self.num_prompts]
        return [fill(template, self.rare_word, subject.noun) for template in chosen]


def benchmark(
    dataset: str,
    data: str | Path,
    output: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    num_prompts: int | None = None,
    images_per_prompt: int = 4,
    rare_word: str = "sks",
    sampling_steps: int = 50,
    guidance: float = 7.5,
    sampling_seed: int = 0,
    batch_size: int = 1,
    dino: str = DINO,
    clip: str = CLIP,
    **training: Any,
) -> dict[str, Any]:
    """Personalize a model on each subject of a dataset and score it by the papers' protocol.

    Each subject is trained by :func:`sopt.train`, its prompts are drawn by :func:`sopt.generate`,
    and the pictures scored by :meth:`~sopt.evaluation.metrics.Scorer.score`; scores are means per
    subject first, then over subjects. Picture i of prompt p (from 0) has the seed
    ``sampling_seed + 1000 p + i``, the same for every subject and method.

    ``output`` gets ``benchmark.json`` (the settings), for each subject ``subject.json`` (its
    prompts, and a digest of its pictures), ``run/``, ``samples/``, ``prompts.json``,
    ``scores.json`` and ``grid.png``, and in the end ``scores.json``. Each is written once: a
    benchmark that was killed goes on when called again, and more ``subjects`` can be added later.
    Where a subject's pictures were deleted they are drawn again, the same ones, and scored again.

    Args:
        dataset: "dreambooth" (google/dreambooth) or "customconcept101".
        data: The dataset's folder, as downloaded.
        output: Folder to write.
        subjects: Names of those to take; all if not given.
        num_prompts: The first so many of each subject, which must have them; all if not given.
        images_per_prompt: At most 1000. The protocol's is 4.
        rare_word: The rare word that is trained to mean the subject.
        sampling_steps, guidance, sampling_seed, batch_size: As ``generate``'s steps, guidance, seed
            and batch_size. DreamBooth's authors publish none, CustomConcept101's report several.
        dino, clip: Backbones: folders that ``save_pretrained`` wrote, of CLIP the model's and its
            tokenizer's, or hub ids.
        **training: Settings of :func:`sopt.train` but images, prompt and output.

    Returns:
        ``dataset``, ``subset`` (None, or what was left out of the protocol), ``settings``,
        ``backbones``, ``mean`` of the metrics over subjects, and ``subjects``: scores, peak bytes
        and seconds of training, and the versions of each; ``versions``, several of a package where
        subjects were scored by different ones.

    Raises:
        InputError: Data, settings or backbones will not do, or ``output`` holds another benchmark.
        NotFiniteError: A subject's run diverged. The other subjects are scored first.

    Example:
        >>> benchmark("dreambooth", "data/dreambooth", "out", subjects=["dog6"], steps=500)["mean"]
    """
    from ..files import check_writable, write_json
    from ..trainer import identify, prepare
    from .datasets import read_subjects
    from .metrics import Scorer

    protocol = Protocol(
        dataset, num_prompts, images_per_prompt, rare_word, sampling_steps, guidance, sampling_seed,
        batch_size, dino, clip,
    )  # fmt: skip
    protocol.check()
    training = {"samples": False} | training
    for name in ("images", "prompt", "output"):
        if name in training:
            raise InputError(f"{name} is not a setting of a benchmark: each subject has its own")
    config = TrainConfig.create(images="-", prompt="-", output="-", **training)
    chosen = read_subjects(dataset, data, subjects)
    for subject in chosen:
        protocol.check_prompts(subject)
    folder = Path(output)
    settings = {"protocol": asdict(protocol), "training": _given(config)}
    if settings_of_run(folder):
        raise InputError(f"output {str(output)!r} is the folder of a run: choose another folder")
    for subject in chosen:
        if (folder / subject.name).resolve() == subject.folder.resolve():
            raise InputError(
                f"output {str(output)!r} must not be where the dataset's pictures are, got the "
                f"folder that {subject.name} is in: choose another folder"
            )
    check_writable(folder)
    file = folder / BENCHMARK_FILE
    compare(file, settings)  # before anything is loaded, or had from the hub
    backbones = Scorer(dino, clip, config.device, batch_size).backbones  # missing: known at once
    first = _of_subject(chosen[0], protocol, folder)
    resolved, model, _ = prepare(**first, **training)  # wrong ones: known before the first subject
    asked = settings | {"model": identify(resolved, model), "backbones": backbones}
    claim(file, asked, ["scores.json"])
    results, diverged = {}, []
    for number, subject in enumerate(chosen, start=1):
        logger.info("%s (%d of %d)", subject.name, number, len(chosen))
        try:
            results[subject.name] = _subject(subject, protocol, training, folder)
        except NotFiniteError as error:
            diverged.append(subject.name)
            logger.warning("%s: %s", subject.name, error)
    if diverged:
        raise NotFiniteError(
            f"the runs of {len(diverged)} of {len(chosen)} subjects diverged "
            f"({', '.join(diverged)}): their pictures are not finite; a lower rate may help, "
            "or name the others in subjects for a table of them"
        )
    report = {
        "dataset": dataset,
        "subset": _subset(dataset, chosen, protocol),
        "settings": settings,
        "backbones": backbones,
        "versions": _joined([each["versions"] for each in results.values()]),
        "mean": {metric: _mean([each[metric] for each in results.values()]) for metric in METRICS},
        "subjects": results,
    }
    write_json(folder / "scores.json", report)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The scores as text: one line a subject, then the mean over subjects."""
    rows = [(name, scores) for name, scores in report["subjects"].items()]
    width = max(len("mean over subjects"), *(len(name) for name, _ in rows))
    lines = [f"{'':{width}}  " + "".join(f"{metric:>10}" for metric in METRICS)]
    for name, scores in [*rows, ("mean over subjects", report["mean"])]:
        cells = ["-" if scores[m] is None else f"{scores[m]:.4f}" for m in METRICS]
        lines.append(f"{name:{width}}  " + "".join(f"{cell:>10}" for cell in cells))
    names = [f"{metric} {found['name']}" for metric, found in report["backbones"].items()]
    protocol = report["settings"]["protocol"]
    lines += [
        f"backbones: {', '.join(names)}",
        f"drawn with {protocol['sampling_steps']} steps, guidance {protocol['guidance']:g}, "
        f"seeds {protocol['sampling_seed']} + {SEEDS_A_PROMPT} prompt + image",
    ]
    if report["subset"]:
        lines.append(f"a subset of the protocol, not comparable with it: {report['subset']}")
    return "\n".join(lines)


def _of_subject(subject: Subject, protocol: Protocol, folder: Path) -> dict[str, str]:
    """The settings of :func:`sopt.train` that each subject has itself."""
    return {
        "images": str(subject.folder),
        "prompt": subject.training_prompt(protocol.rare_word),
        "output": str(folder / subject.name / "run"),
    }


def _subject(
    subject: Subject, protocol: Protocol, training: dict[str, Any], output: Path
) -> dict[str, Any]:
    """Train, draw and score one subject, or take what is there of it."""
    from ..doctor import versions
    from ..files import write_bytes, write_json
    from ..run_folder import picture_fingerprint
    from ..trainer import train
    from .metrics import Scorer

    own = _of_subject(subject, protocol, output)
    folder = output / subject.name
    references = subject_pictures(str(subject.folder), "real", "data")
    asked = {
        "training_prompt": own["prompt"],
        "prompts": list(protocol.prompts(subject)),
        "pictures": picture_fingerprint(references),
    }
    claim(folder / SUBJECT_FILE, asked, ["run", SAMPLES, PROMPTS_FILE, GRID, "scores.json"])
    done = folder / "scores.json"
    of_scores = [done, folder / PROMPTS_FILE, *chain(*_picture_files(subject, protocol, folder))]
    if all(file.exists() for file in of_scores):
        return _read_scores(done)
    if done.exists():
        logger.info("%s: pictures were deleted: what is missing is made again", subject.name)
        done.unlink()  # it is of other pictures, should this be stopped before they are scored
    run = train(**own, **training)
    prompts = _draw(subject, protocol, run.config, run.adapter, folder)
    drawn = group_by_prompt(
        subject_pictures(str(folder / SAMPLES), "drawn", "output"), prompts, protocol.rare_word
    )
    rows = [[picture.image for picture in references]]
    rows += [[picture.image for picture in pictures] for _, pictures in drawn]
    for picture in (picture for row in rows for picture in row):
        picture.thumbnail((GRID_CELL, GRID_CELL))
    labels = [f"real pictures of {subject.name}", *(text for text, _ in drawn)]
    write_bytes(folder / GRID, png_bytes(picture_grid(rows, labels)))
    scorer = Scorer(protocol.dino, protocol.clip, run.config.device, protocol.batch_size)
    scores = scorer.score(references, drawn).to_dict()
    peaks = {phase: size for phase, size in run.memory.items() if isinstance(size, int)}
    scores["peak_bytes"] = max(peaks.values())
    scores["train_seconds"] = sum(entry["seconds"] for entry in run.history)
    scores["versions"] = versions()
    write_json(done, scores)
    return scores


def _picture_files(subject: Subject, protocol: Protocol, folder: Path) -> list[list[Path]]:
    """Of each prompt."""
    return [
        [folder / SAMPLES / f"{p:02d}-{i}.png" for i in range(protocol.images_per_prompt)]
        for p in range(len(protocol.prompts(subject)))
    ]


def _read_scores(file: Path) -> dict[str, Any]:
    scores = read_object(file, "output: ")
    kinds: dict[str, Any] = dict.fromkeys(METRICS, (int, float, type(None)))
    kinds |= {"peak_bytes": int, "train_seconds": (int, float), "versions": dict}
    for name, kind in kinds.items():
        if name not in scores or not isinstance(scores[name], kind):
            raise InputError(
                f"output: {file} is damaged: its {name} is "
                f"{str(scores.get(name, 'missing'))[:80]}; without the file it is scored again"
            )
    return scores


def _draw(
    subject: Subject, protocol: Protocol, config: TrainConfig, adapter: Path, folder: Path
) -> dict[str, str]:
    """Draw what is not there yet; the prompt of each picture by the stem of its file."""
    from ..files import write_bytes, write_json

    prompts = protocol.prompts(subject)
    files = _picture_files(subject, protocol, folder)
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        some = slice(first, first + PROMPTS_AT_ONCE)
        wanted = [file for row in files[some] for file in row]
        if all(file.exists() for file in wanted):
            continue
        # All of them, as in an unbroken benchmark: batches of other sizes give other last bits.
        pictures = generate(
            config.model,
            adapter,
            prompt=prompts[some],
            seed=protocol.seed(first),
            steps=protocol.sampling_steps,
            guidance=protocol.guidance,
            num_images=protocol.images_per_prompt,
            batch_size=protocol.batch_size,
            resolution=config.resolution,
            device=config.device,
            weights=config.weights,
            low_memory=True,
            offload="stream" if config.lean else "none",
        )
        for file, picture in zip(wanted, pictures, strict=True):
            write_bytes(file, png_bytes(picture))
    named = {file.stem: text for row, text in zip(files, prompts, strict=True) for file in row}
    write_json(folder / PROMPTS_FILE, named)
    return named


def _given(config: TrainConfig) -> dict[str, Any]:
    """The training settings that scores depend on, but for those that each subject has itself."""
    return {k: v for k, v in config.bits().items() if k not in ("images", "prompt")}


def _subset(dataset: str, chosen: Sequence[Subject], protocol: Protocol) -> str | None:
    """What was left out of the published protocol; None if nothing was."""
    prompts = min(len(protocol.prompts(subject)) for subject in chosen)
    found = (len(chosen), prompts, protocol.images_per_prompt)
    wanted = PUBLISHED[dataset]
    if all(each >= most for each, most in zip(found, wanted, strict=True)):
        return None
    names = ("subjects", "prompts", "images per prompt")
    parts = zip(found, wanted, names, strict=True)
    return ", ".join(f"{each} of {most} {name}" for each, most, name in parts if each < most)


def _joined(versions: Sequence[Mapping[str, str | None]]) -> dict[str, str | None]:
    """Of each package the version, or all that there are."""
    found: dict[str, set[str]] = {}
    for each in versions:
        for name, version in each.items():
            found.setdefault(name, set()).update([] if version is None else [version])
    return {name: ", ".join(sorted(each)) or None for name, each in found.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
