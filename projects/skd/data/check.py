"""What is wrong with a dataset in COCO's format: all of it at once."""

from typing import Any, List, NamedTuple

from .annotations import check_annotations
from .images import check_files, check_pixels
from .mend import Notes, mend
from .problems import Problem, merge_repeated
from .reading import read_coco, without_gc


class Report(NamedTuple):
    """
    Attributes:
        content: of the file, mended in place; what the JSON holds if it is no COCO file.
        problems: errors first.
        notes: what was mended, and the annotations whose masks have no area.
    """

    content: Any
    problems: List[Problem]
    notes: Notes

    @property
    def errors(self) -> List[Problem]:
        return [p for p in self.problems if p.level == "error"]


def examine(
    json_file: str, image_root: str, read_images: bool = False, anywhere: bool = False
) -> Report:
    """
    Check annotations and images, and mend what can be meant in one way only.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder the images' ``file_name`` starts from.
        read_images: decode every image as well, which takes long.
        anywhere: images may be outside of ``image_root``.
    """
    notes = Notes()
    with without_gc():
        content, problems = read_coco(json_file, notes)
        if not problems:
            mend(content, notes)
            problems = [*check_annotations(content, notes)]
            problems += check_files(content, image_root, anywhere)
            problems += [Problem("warning", where, what) for where, what in notes.lines()]
        if read_images and content is not None:
            problems += check_pixels(content, image_root, problems)
    problems = merge_repeated(problems)
    return Report(content, problems, notes)
