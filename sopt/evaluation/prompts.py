"""Prompts of the benchmarks: templates, what a model is asked to draw, and what CLIP is told.

A template has ``{}`` where the subject stands. To draw, that is a rare word and the subject's class
("sks dog"); CLIP, which has never seen the rare word with the subject, gets the class alone.
"""

from __future__ import annotations

import re

from ..errors import InputError

_HEADING = re.compile(r"(Classes|Prompts|Object Prompts|Live Subject Prompts)\s*")
_ENTRY = re.compile(r"'(.*)'\.format\(unique_token, class_token\),?")
_OBJECTS, _LIVE = "Object Prompts", "Live Subject Prompts"
_SUBJECT = "{0} {1}"


def fill(template: str, *words: str) -> str:
    """The template with ``words`` in the place of the subject.

    Example:
        >>> fill("a {} in the snow", "sks", "dog")
        'a sks dog in the snow'
    """
    return collapse_spaces(template.replace("{}", " ".join(words)))


def without_word(prompt: str, word: str) -> str:
    """The prompt without a word, which may have marks in it, such as ``<new1>``.

    Example:
        >>> without_word("a sks dog in a bucket", "sks")
        'a dog in a bucket'
    """
    return collapse_spaces(re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", prompt))


def collapse_spaces(text: str) -> str:
    """The text with one space between its words and none around it."""
    return " ".join(text.split())


def parse_dreambooth(text: str, name: str) -> tuple[dict[str, str], list[str], list[str]]:
    """What ``prompts_and_classes.txt`` of google/dreambooth says; nothing of it is executed.

    Args:
        text: The file's content.
        name: The file's name, for messages.

    Returns:
        The class of each subject, the templates for objects, and those for live subjects.

    Raises:
        InputError: A line is of another form, or a part is missing.
    """
    classes: dict[str, str] = {}
    templates: dict[str, list[str]] = {_OBJECTS: [], _LIVE: []}
    part = ""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line in ("subject_name,class", "prompt_list = [", "]"):
            continue
        if _HEADING.fullmatch(line):
            part = line
        elif part == "Classes" and line.count(",") == 1:
            subject, noun = (each.strip() for each in line.split(","))
            classes[subject] = noun
        elif (entry := _ENTRY.fullmatch(line)) and part in templates and _SUBJECT in entry[1]:
            templates[part].append(entry[1].replace(_SUBJECT, "{}"))
        else:
            raise InputError(f"data: line {number} of {name} is not understood: {line!r}")
    for found, what in [(classes, "Classes"), *((templates[each], each) for each in templates)]:
        if not found:
            raise InputError(f"data: {name} has nothing under {what!r}")
    return classes, templates[_OBJECTS], templates[_LIVE]


def parse_lines(text: str, name: str) -> list[str]:
    """The templates of a prompt file of CustomConcept101: one a line, ``{}`` for the subject.

    Raises:
        InputError: A line without ``{}``, or no line at all.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"data: the prompt file {name} is empty")
    for line in lines:
        if "{}" not in line:
            raise InputError(f"data: a prompt in {name} has no {{}} for the subject: {line!r}")
    return lines
