"""Small datasets in the layouts of the published ones."""

from __future__ import annotations

from pathlib import Path

from pipelines import save_pictures

LISTS = """Classes

subject_name,class
vase,vase
cat2,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} under a lamp'.format(unique_token, class_token),
'a green {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} under a lamp'.format(unique_token, class_token),
'a {0} {1} wearing gloves'.format(unique_token, class_token)
]
"""


def save_dreambooth(folder: Path) -> Path:
    """Two subjects, two prompts each, in the layout of google/dreambooth."""
    (folder / "dataset").mkdir(parents=True)
    (folder / "dataset" / "prompts_and_classes.txt").write_text(LISTS)
    for name in ("vase", "cat2"):
        save_pictures(folder / "dataset" / name, 2)
    return folder
