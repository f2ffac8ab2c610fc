"""Options of the command line and the Python settings that they are."""

from __future__ import annotations


def flag(name: str) -> str:
    """The option of a setting.

    Example:
        >>> flag("low_res_ratio")
        '--low-res-ratio'
    """
    return "--" + name.replace("_", "-")


def dashed(argument: str) -> str:
    """An argument of the command line with the dashes of :func:`flag`, where it is an option.

    Example:
        >>> dashed("--low_res_ratio=0.5"), dashed("a_file")
        ('--low-res-ratio=0.5', 'a_file')
    """
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
