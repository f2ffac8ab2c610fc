"""The command line, ``sopt COMMAND``; ``sopt --help`` lists the commands.

Options have the names of the Python settings; dashes may stand for underscores. What the user asked
for and cannot be done is one line on stderr and status 2; Ctrl-C is status 130. PyTorch, which
takes seconds to import, is imported only once the options are known to be right.
"""

import argparse
import importlib.metadata
import inspect
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from . import launch
from .commands import evaluation, reports
from .commands.figures import check_folder, json_file, write_json
from .commands.log import printed_log
from .config import TrainConfig, settings
from .errors import InputError, nearest
from .flags import dashed, flag
from .settings_file import read_yaml

MIB = 2**20

GENERATE_HELP = {
    "prompt": "text to draw, with the word that stands for the subject: 'a sks dog on the beach'",
    "model": "'tiny' (bundled), a diffusers folder, a .safetensors file or a hub id; that of the "
    "adapter's run if not given, and tiny without a run",
    "adapter": "a run's folder, a LoRA file of diffusers or kohya, a token file, or the difference "
    "that trained codes or scales are",
    "seed": "seed of the first picture; the next has the next seed",
    "steps": "denoising steps",
    "guidance": "classifier-free guidance scale (7.5 if not given, 2 for tiny)",
    "negative_prompt": "text to stay away from",
    "adapter_scale": "factor on the adapter, 0 for none",
    "num_images": "number of pictures",
    "batch_size": "pictures drawn at once: faster, in that many times the memory",
    "resolution": "side in pixels; the model's own if not given",
    "device": "where to draw: cpu, cuda; the GPU if there is one, if not given",
    "weights": "dtype of text encoders and U-Net: float32, bfloat16, float16, or int8",
    "low_memory": "true: halves of guidance one after the other, and large pictures in tiles",
    "offload": "stream reads weights piece by piece: for models that do not fit in memory",
    "two_paths": "false uses a hollowed adapter by one ordinary path: quicker, an approximation",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for an input error, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Read by these libraries when they are imported: they warn of parts that are not used here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            options = vars(_parse(arguments))
            COMMANDS[options.pop("command")](options)
        except InputError as error:
            print(f"sopt: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            resumable = arguments[0] in ("train", "demo", "benchmark")
            hint = "; the same command continues" if resumable else ""
            print(f"sopt: interrupted{hint}", file=sys.stderr)
            return 130
    return 0


def train(options: dict[str, Any]) -> None:
    """Train an adapter on pictures of a subject."""
    figures_file = json_file(options)
    for name in ("images", "prior_images"):
        if len(options.get(name, ())) == 1:
            (options[name],) = options[name]
    if config_file := options.pop("config", None):
        options = read_yaml(Path(config_file)) | options
    TrainConfig.create(**options)

    from .trainer import train as train_run

    writes = launch.rank() == 0
    with printed_log() if writes else nullcontext():
        run = train_run(**options)
    if not writes:
        return
    figures = {"adapter": str(run.adapter), "steps": len(run.history), "memory": run.memory}
    write_json(figures_file, figures)
    print(f"adapter      {run.adapter}")
    peaks = dict(run.memory)
    process = peaks.pop("process_anonymous")
    print(f"peak memory  tensors {_peaks(peaks)}; process {_mib(max(process.values(), default=0))}")


def generate(options: dict[str, Any]) -> None:
    """Draw pictures, with an adapter or without."""
    from . import sampling  # quick: it imports PyTorch only when it draws

    if "prompt" not in options:
        raise InputError(f"prompt is missing: {GENERATE_HELP['prompt']}")
    files = _picture_files(Path(options.pop("output")), options.get("num_images", 1))
    pictures = sampling.generate(**options)

    from .files import write_bytes

    for file, picture in zip(files, pictures, strict=True):
        write_bytes(file, sampling.png_bytes(picture))
        print(file)


def demo(options: dict[str, Any]) -> None:
    """Teach the bundled model a new subject, in minutes, and measure how well."""
    figures_file = json_file(options)

    from .demo import demo as run_demo

    figures = run_demo(Path(options["output"]), options["seed"], options["steps"])
    write_json(figures_file, figures)
    print(f"seconds        {figures['seconds']:.0f}")
    print(f"peak memory    {_peaks(figures['peak_bytes'])}")
    for score in ("subject", "prompt"):
        before, after = figures[f"{score}_before"], figures[f"{score}_after"]
        print(f"{score + ' score':15}{before:.3f} before, {after:.3f} after")
    print(f"grid           {figures['grid']}")
    print(f"adapter        {figures['adapter']}")


def doctor(options: dict[str, Any]) -> None:
    """Show versions, devices, and which kernels are in use here."""
    figures_file = json_file(options)

    from .doctor import examine, render

    findings = examine()
    write_json(figures_file, findings)
    print(render(findings))


def plan(options: dict[str, Any]) -> None:
    """Show what runs would take in memory, and which fit a budget; needs none of it."""
    figures_file = json_file(options)

    from .planning import advice_of_plan, cuts_text, table
    from .planning import plan as predict

    rows = predict(**options)
    write_json(figures_file, [row.to_dict() for row in rows])
    print("Peak memory of tensors, in MiB. The process takes at most 15 % and 120 MiB more than")
    print("that, on top of Python and its libraries.")
    print(table(rows))
    if not rows[0].fits:  # those that fit come first
        print(f"None fits; {advice_of_plan(rows, options['memory_budget'])}".rstrip("; "))
    cuts = cuts_text(options.get("model", "tiny"))
    print(f"Cuts for hollow, with the share of the UNet that each leaves out: {cuts}")


COMMANDS = {
    "train": train,
    "generate": generate,
    "plan": plan,
    "evaluate": evaluation.evaluate,
    "benchmark": evaluation.benchmark,
    "report": reports.report,
    "demo": demo,
    "doctor": doctor,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(message)

    def option_names(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]


def _parse(arguments: list[str]) -> argparse.Namespace:
    # Names are those of the Python settings, which underscores may be copied from.
    arguments = list(map(dashed, arguments))
    parser = _Parser(
        prog="sopt",
        allow_abbrev=False,
        description="Personalize text-to-image diffusion models within little memory.",
    )
    version = importlib.metadata.version("sopt")
    parser.add_argument("--version", action="version", version=f"sopt {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {
        name: commands.add_parser(
            name,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            help=command.__doc__,
            description=command.__doc__,
        )
        for name, command in COMMANDS.items()
    }
    _add_train_options(parsers["train"])
    _add_plan_options(parsers["plan"])
    _add_generate_options(parsers["generate"])
    _add_demo_options(parsers["demo"])
    evaluation.add_evaluate_options(parsers["evaluate"])
    evaluation.add_benchmark_options(parsers["benchmark"])
    _add_settings(parsers["benchmark"], without=("images", "prompt", "output"))
    reports.add_options(parsers["report"])
    for name in ("train", "plan", "evaluate", "benchmark", "demo", "doctor"):
        parsers[name].add_argument("--json", metavar="FILE", help="write the figures there too")

    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise InputError(f"unknown command {arguments[0]!r}: {nearest(arguments[0], COMMANDS)}")
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            raise InputError(f"unexpected argument {name!r}")
        known = parsers.get(namespace.command, parser).option_names()
        raise InputError(f"unknown option {name!r}: {nearest(name, known)}")
    if namespace.command is None:
        raise InputError(f"expected a command: {', '.join(COMMANDS)}; --help says more")
    if namespace.command != "train" and launch.world_size() > 1:
        raise InputError(
            f"sopt {namespace.command} does not go with {launch.world_size()} processes, "
            "only sopt train does"
        )
    return namespace


# What has defaults of its own.
_MODES: dict[str, dict[str, Any]] = {
    "textual-inversion": {"method": "textual-inversion", "token": "<dog>", "initializer": "dog"},
    "train=codes": {"train": "codes"},
    "train=scales": {"train": "scales"},
}


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="settings in YAML; options come on top")
    _add_settings(parser)


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser, without=("images", "prompt", "output", "resume", "checkpoint_every"))


def _add_settings(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    given = {"images": "-", "prompt": "-", "output": "-"}
    implied = {mode: vars(TrainConfig.create(**given | own)) for mode, own in _MODES.items()}
    for setting in settings():
        if setting.name in without:
            continue
        text = setting.metadata["help"]
        if setting.default not in (MISSING, None):
            own = [
                f"{mode} {values[setting.name]}"
                for mode, values in implied.items()
                if values[setting.name] != setting.default and setting.name not in _MODES[mode]
            ]
            text += f" (default: {setting.default}{'; with ' * bool(own)}{', '.join(own)})"
        parser.add_argument(
            flag(setting.name),
            metavar=setting.name.upper(),
            # TrainConfig turns text into numbers where it expects them, and says so if it cannot;
            # whole numbers alone it takes as they are.
            type=int if str(setting.type).startswith("int") else str,
            nargs="+" if setting.name.endswith("images") else None,
            help=text.replace("%", "%%"),
        )


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    from .sampling import generate as draw

    parser.add_argument(
        "--output",
        default="picture.png",
        metavar="FILE",
        help="PNG file to write, numbered if there are several (default: picture.png)",
    )
    for name, parameter in inspect.signature(draw).parameters.items():
        text = GENERATE_HELP[name]
        if parameter.default not in (parameter.empty, None):
            text += f" (default: {parameter.default})"
        types: dict[str, Any] = {"int": int, "float": float, "bool": _boolean}
        parser.add_argument(
            flag(name),
            metavar=name.upper(),
            type=types.get(str(parameter.annotation).removesuffix(" | None"), str),
            help=text,
        )


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text == "true"


def _add_demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", default="demo", metavar="DIR", help="folder to write (default: demo)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        metavar="N",
        help="training steps; the demo's own if not given",
    )


def _picture_files(output: Path, count: int) -> list[Path]:
    if output.suffix.lower() != ".png":
        raise InputError(f"output must be a .png file, got {str(output)!r}")
    files = [output]
    if count > 1:
        files = [output.with_stem(f"{output.stem}-{number}") for number in range(1, count + 1)]
    check_folder("output", output)
    for file in files:
        if file.exists():
            raise InputError(f"output {str(file)!r} exists and is not overwritten; name another")
    return files


def _peaks(phases: Mapping[str, int]) -> str:
    highest = _mib(max(phases.values()))
    return f"{highest} ({', '.join(f'{phase} {_mib(peak)}' for phase, peak in phases.items())})"


def _mib(number_of_bytes: int) -> str:
    return f"{number_of_bytes / MIB:.0f} MiB"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sopt: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
