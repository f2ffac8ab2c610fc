"""``sopt evaluate`` and ``sopt benchmark``."""

import argparse
import inspect
from collections.abc import Callable
from typing import Any

from .. import checks
from ..errors import InputError
from ..evaluation.benchmarking import PUBLISHED, table
from ..evaluation.benchmarking import benchmark as run_benchmark
from ..evaluation.evaluating import evaluate as score
from ..evaluation.tiny.benchmark import benchmark_tiny
from ..flags import flag
from .figures import json_file, write_json
from .log import printed_log

HELP = {
    "images": "drawn pictures: a folder, one with samples/ and prompts.json, or files",
    "references": "real pictures of the subject: a folder or files",
    "prompts": "one text for all drawn pictures, or a JSON file from names to texts; prompts.json "
    "in the folder of images if not given",
    "rare_word": "the rare word that stands for the subject",
    "dino": "backbone of DINO and diversity: a folder that save_pretrained wrote, or a hub id",
    "clip": "backbone of CLIP-I and CLIP-T, likewise, with its tokenizer",
    "batch_size": "pictures embedded, or drawn, at once",
    "device": "where to compute: cpu, cuda; the GPU if there is one, if not given",
    "data": "the dataset's folder, as downloaded",
    "output": "folder to write, for tiny a .jsonl file; a benchmark that was stopped goes on",
    "subjects": "names of the subjects to take, for tiny numbers; all if not given",
    "num_prompts": "the first so many prompts of each subject; all if not given",
    "images_per_prompt": "pictures of each prompt",
    "sampling_steps": "denoising steps of each picture",
    "guidance": "classifier-free guidance scale",
    "sampling_seed": "seed of the first picture of the first prompt",
    "seeds": "with tiny: seeds of training and drawing",
    "methods": "with tiny: which, and drawings and others for ceiling and floor; all if not given",
    "tuning": "with tiny: a .jsonl file of the search for settings, which is completed first",
}
TINY_DEFAULTS = {  # None: there is none, or it is a long list
    name: parameter.default if isinstance(parameter.default, int) else None
    for name, parameter in inspect.signature(benchmark_tiny).parameters.items()
}
ONLY_OF_TINY = ("seeds", "methods", "tuning")


def evaluate(options: dict[str, Any]) -> None:
    """Score drawn pictures of a subject: DINO, CLIP-I, CLIP-T, diversity."""
    file = json_file(options)
    _require(options, ("images", "references"))
    for name in ("images", "references"):
        if len(options[name]) == 1:
            (options[name],) = options[name]
    scores = score(**options)
    write_json(file, scores)
    for name in ("dino", "clip_i", "clip_t", "diversity"):
        none = "- (needs two pictures of a prompt)"
        print(f"{name:12}{none if scores[name] is None else f'{scores[name]:.4f}'}")
    counts = ", ".join(f"{name} {scores[name]}" for name in ("images", "references", "prompts"))
    print(f"{'of':12}{counts}")
    for name, backbone in scores["backbones"].items():
        print(f"{name + ' by':12}{backbone['name']}")


def benchmark(options: dict[str, Any]) -> None:
    """Train on each subject of a dataset, draw its prompts, and score."""
    if options["dataset"] == "tiny":
        return _benchmark_tiny(options)
    checks.choice("benchmark", options["dataset"], (*PUBLISHED, "tiny"))
    for name in ONLY_OF_TINY:
        if name in options:
            raise InputError(f"{name} goes with the dataset tiny only, got {options['dataset']!r}")
    file = json_file(options)
    _require(options, ("data", "output"))
    with printed_log():
        report = run_benchmark(**options)
    write_json(file, report)
    print(table(report))
    return None


def _benchmark_tiny(options: dict[str, Any]) -> None:
    file = json_file(options)
    del options["dataset"]
    for name in options:
        if name not in TINY_DEFAULTS:
            raise InputError(f"{name} does not go with the benchmark tiny, which has its own")
    _require(options, ("output",))
    for name in ("subjects", "seeds"):
        if name in options:
            options[name] = [_whole(name, value) for value in options[name]]
    with printed_log():
        lines = benchmark_tiny(**options)

    from ..evaluation.tiny.analysis import analyse
    from ..evaluation.tiny.table import markdown

    analysis = analyse(lines)
    write_json(file, analysis)
    print(markdown(analysis))


def _whole(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise InputError(f"{name} must be whole numbers, got {value!r}") from error


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, score, several=("images", "references"))


def add_benchmark_options(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(PUBLISHED)
    of_tiny = ", ".join(
        flag(name) if default is None else f"{flag(name)} ({default})"
        for name, default in TINY_DEFAULTS.items()
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help=f"which one: {known}; or tiny, which takes {of_tiny} and --json alone",
    )
    for name in ONLY_OF_TINY:
        several = None if name == "tuning" else "+"
        parser.add_argument(flag(name), metavar=name.upper(), nargs=several, help=HELP[name])
    # The training settings, which the command line adds, have the device.
    _add_options(parser, run_benchmark, several=("subjects",), without=("dataset", "training"))


def _add_options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    several: tuple[str, ...],
    without: tuple[str, ...] = (),
) -> None:
    for name, parameter in inspect.signature(function).parameters.items():
        if name in without:
            continue
        text = HELP[name]
        if parameter.default not in (parameter.empty, None):
            text += f" (default: {parameter.default})"
        types: dict[str, Any] = {"int": int, "float": float}
        parser.add_argument(
            flag(name),
            metavar=name.upper(),
            type=types.get(str(parameter.annotation).removesuffix(" | None"), str),
            nargs="+" if name in several else None,
            help=text,
        )


def _require(options: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in options:
            raise InputError(f"{name} is missing: {HELP[name]}")
