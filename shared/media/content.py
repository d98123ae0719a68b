"""Content: what a file's first bytes look like, to say so when they are not what its name promises.

in        the bytes of a file that a decoder turned away; digests of those it took
out       a few words for an error text, by which nothing is decided; and whether a folder holds a content twice
relies on nothing
"""

from shared.errors import MediaFault

_SIGNATURES = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"fLaC", "FLAC"),
    (b"OggS", "Ogg"),
    (b"ID3", "MP3"),
    (b"\x93NUMPY", "NumPy array"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"<", "XML or HTML"),
    (b"version https://git-lfs", "Git LFS pointer: fetch the file itself with `git lfs pull`"),
)


def content_name(data: bytes) -> str:
    """What a file's first bytes look like, for an error text; nothing is decided by it."""
    if data[:4] == b"RIFF":
        return {b"WAVE": "looks like WAV", b"WEBP": "looks like WebP"}.get(data[8:12], "looks like RIFF")
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return f"looks like {name}"
    return "looks like text" if data[:64].isascii() else "unknown content"


class Originals:
    """The contents of one modality of one folder, as they come row by row: each a recording of its own."""

    def __init__(self, *, unit: str) -> None:
        self._unit = unit
        self._first: dict[bytes, tuple[int, str | None]] = {}

    def check(self, digest: bytes, *, line: int, subject: str | None) -> None:
        """Notes the content of a row.

        Raises:
            MediaFault: an earlier row has the same under another name, and not knowingly so: rows that share a
                subject_id may say several things about one picture.
        """
        first_line, first_subject = self._first.setdefault(digest, (line, subject))
        # PRIVACY: a record twice would be protected as if it were two. test_all_faults_of_a_folder_come_in_one_error
        if first_line != line and (subject is None or subject != first_subject):
            raise MediaFault(
                field="content",
                came=f"the same, byte for byte, as that of {self._unit} {first_line}",
                allowed="each recording once, or several times under one subject_id",
            )
