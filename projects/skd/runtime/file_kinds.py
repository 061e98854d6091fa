"""What a file is that is given in the place of weights, by its first bytes."""

# magic number of torch's older files, as their first pickle has it
_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_OTHERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file itself: git lfs pull",
    b"<!doctype": "it is a web page; download the file itself",
    b"<html": "it is a web page; download the file itself",
    b"\x1f\x8b": "it is compressed by gzip; unpack it",
}
HEAD = 64  # bytes that tell


def check_torch(head: bytes) -> None:
    """
    Args:
        head: the first ``HEAD`` bytes of a file to be read by ``torch.load``.

    Raises:
        ValueError: another kind of file; says what to do.
    """
    _check_others(head)
    if head.startswith(b"\x80") and _TORCH not in head:
        raise ValueError("it is a pickle that torch.save has not written; name it .pkl")
    if head and not head.startswith((b"PK\3\4", b"\x80")):  # a zip file, or a pickle
        raise ValueError("it is no file of torch.save")


def check_pickle(head: bytes) -> None:
    """:func:`check_torch`, of a file to be read as a pickle of arrays."""
    _check_others(head)
    if head.startswith(b"PK\3\4") or _TORCH in head:
        raise ValueError("it is a file of torch.save; name it .pth")


def _check_others(head: bytes) -> None:
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**32:
        raise ValueError(
            "it is a file of safetensors; torch.save({'model': safetensors.torch.load_file(FILE)}, "
            "...) makes one of torch of it"
        )
    start = head.lstrip().lower()
    for first, words in _OTHERS.items():
        if start.startswith(first):
            raise ValueError(words)
