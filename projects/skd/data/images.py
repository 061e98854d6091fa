"""What is wrong with the images of a dataset: their sizes, files and pixels."""

import os
import stat
import unicodedata
from functools import cached_property
from typing import Any, Dict, Iterator, List

from detectron2.utils.file_io import PathManager
from PIL import Image

from ..runtime.downloads import is_remote
from .problems import Problem, image_name, short

LONGEST = 20  # times as long as wide: little is left of such an image at a usual size
MOST_SAMPLED = 64  # images of a dataset whose headers are read before a run
TURNS = {
    2: "mirrors it", 3: "turns it by 180 degrees", 4: "mirrors it", 5: "turns and mirrors it",
    6: "turns it by 90 degrees", 7: "turns and mirrors it", 8: "turns it by 90 degrees",
}  # fmt: skip


def check_files(content: Dict[str, Any], root: str, anywhere: bool = False) -> Iterator[Problem]:
    """``anywhere``: names may lead out of ``root``, as Detectron2 has it."""
    remote = is_remote(root)
    if not remote and not anywhere and not os.path.isdir(root):
        yield Problem("error", root, "there is no such folder of images")
        return
    folders: Dict[str, _Folder] = {}
    for image in content["images"]:
        yield from _sides(image)
        path = os.path.join(root, image["file_name"])
        if remote:
            continue
        # as written: where links lead is up to whoever made them (DVC's and git-annex's lead out)
        suspicious = ".." in image["file_name"] or os.path.isabs(image["file_name"])
        if suspicious and not anywhere and not _is_below(path, root):
            what = f"is not in the folder of images, '{root}'"
            yield Problem("error", image_name(image), what)
            continue
        folder, base = os.path.split(path)
        if folder not in folders:
            folders[folder] = _Folder(folder)
        what = folders[folder].what_is_wrong(base)
        if what:
            yield Problem("error", image_name(image), what)


def _is_below(path: str, root: str) -> bool:
    """Whether a file is in a folder, by name or by real path: either may be reached by a link."""
    if os.path.abspath(path).startswith(os.path.join(os.path.abspath(root), "")):
        return True
    folder = os.path.join(os.path.realpath(os.path.dirname(path)), "")
    return folder.startswith(os.path.join(os.path.realpath(root), ""))


def _sides(image: Dict[str, Any]) -> Iterator[Problem]:
    good = True
    for side in ("width", "height"):
        if not is_side(image.get(side)):
            good = False
            what = f"{side} is {short(image.get(side))}; it must be the image's, in pixels"
            yield Problem("error", image_name(image), what)
    if good and image["width"] * image["height"] > most_pixels():
        size = f"{short(image['width'])} x {short(image['height'])}"
        what = f"its size is {size}; it must be at most {most_pixels()} pixels (Pillow's limit)"
        yield Problem("error", image_name(image), what)
    elif good and max(image["width"], image["height"]) > LONGEST * min(
        image["width"], image["height"]
    ):
        size = f"{image['width']} x {image['height']}"
        what = f"is of {size} pixels: too long to leave much at a usual size"
        yield Problem("warning", image_name(image), what)


def is_side(value: Any) -> bool:
    return type(value) is int and value >= 1


def most_pixels() -> int:
    """Pixels of the largest image that Pillow, and so Detectron2, decodes; they fit an int."""
    return min(2 * (Image.MAX_IMAGE_PIXELS or 2**30), 2**31 - 1)


class _Folder:
    """A folder's files, listed once: their kinds are known without a system call for each."""

    def __init__(self, path: str):
        self.path = path
        try:
            with os.scandir(path or ".") as entries:
                self.entries = {entry.name: entry for entry in entries}
        except (OSError, ValueError):
            self.entries = {}

    @cached_property
    def _folded(self) -> Dict[str, str]:
        return {_folded(name): name for name in self.entries}

    def what_is_wrong(self, name: str) -> str:
        """What is wrong with an image's file, in words; "" if nothing is."""
        path, entry = os.path.join(self.path, name), self.entries.get(name)
        if entry is None:
            return f"there is no file {short(path)}{self._alike(name)}"
        try:
            if entry.is_file():
                return ""
            mode = os.stat(path).st_mode
        except OSError as error:
            return (
                f"there is no file {short(path)}: it is a link that leads nowhere "
                f"({error.strerror})"
            )
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        return f"{short(path)} is {kind}; it must be a file"

    def _alike(self, name: str) -> str:
        """What a name that is not there may have meant, in words."""
        if "\\" in name:
            return "; folders in a name must be separated by /"
        found = self._folded.get(_folded(name))
        if not found:
            return ""
        letters = [unicodedata.normalize("NFC", text) for text in (found, name)]
        other = " (the same letters, stored in another form)" if letters[0] == letters[1] else ""
        return f", but there is {short(found)}{other}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def check_pixels(content: Dict[str, Any], root: str, problems: List[Problem]) -> List[Problem]:
    """
    What decoding every image says; those of which ``problems`` has an error already are left out.
    """
    missing = {p.where for p in problems if p.level == "error"}
    found: List[Problem] = []
    for image in content["images"]:
        if image_name(image) not in missing and root not in missing:
            found += _pixels(image, os.path.join(root, image["file_name"]))
    return found


def sample_images(content: Dict[str, Any], root: str) -> List[Problem]:
    """What the headers of a few images, spread over the dataset, say against the annotations."""
    images = content["images"]
    step = max(1, len(images) // MOST_SAMPLED)
    found: List[Problem] = []
    for image in images[::step][:MOST_SAMPLED]:
        found += _pixels(image, os.path.join(root, image["file_name"]), decode=False)
    return found


def _pixels(image: Dict[str, Any], path: str, decode: bool = True) -> Iterator[Problem]:
    where = image_name(image)
    try:
        with PathManager.open(path, "rb") as f, Image.open(f) as picture:
            if decode:
                picture.load()
            stored, mode, flag = picture.size, picture.mode, _orientation(picture)
    except Exception as error:  # decoders raise all kinds
        what = (
            f"cannot be read: {_said(error, path)}. Detectron2 reads what Pillow does: {_formats()}"
        )
        yield Problem("error", where, what)
        return
    shown = stored[::-1] if flag in (5, 6, 7, 8) else stored
    said = (image.get("width"), image.get("height"))
    if flag in TURNS and said == stored != shown:
        what = (
            f"the annotations are of the {stored[0]} x {stored[1]} pixels as stored, but its EXIF "
            f"orientation {flag} {TURNS[flag]} when Detectron2 reads it: {shown[0]} x {shown[1]}. "
            "Remove the flag, or annotate the image as it is shown"
        )
        yield Problem("error", where, what)
    elif shown != said:
        what = f"is of {shown[0]} x {shown[1]} pixels; the annotations say {said[0]} x {said[1]}"
        yield Problem("error", where, what)
    elif flag in TURNS and shown == stored:  # its size cannot show what the boxes are of
        what = (
            "its EXIF orientation turns or mirrors it when Detectron2 reads it: boxes that were "
            "drawn on the pixels as stored are then in the wrong place"
        )
        yield Problem("warning", where, what)
    if mode not in ("RGB", "L", "P", "CMYK", "YCbCr"):
        what = f"has the mode '{mode}': alpha is dropped, and more than 8 bits are cut off"
        yield Problem("warning", where, what)


def _orientation(picture: Image.Image) -> int:
    """The orientation as Detectron2 takes it: EXIF that cannot be read counts as no EXIF."""
    try:
        flag = picture.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises all kinds
        return 1
    return flag if isinstance(flag, int) else 1


def _said(error: Exception, path: str) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"cannot identify image file {short(path)}"
    return str(error) or type(error).__name__


def _formats() -> str:
    Image.init()
    known = {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000"}
    return ", ".join(sorted(known & set(Image.OPEN)))
