"""Text as UTF-8, and what bytes look like that are not."""

from __future__ import annotations

_MARKS = (  # byte order marks; the longer ones first, as one begins with another
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_TABLE = "save it as parquet or JSON lines first"
_MODEL = "that is a model and no text: leave it out"
_PICKLE = "write its texts as JSON lines first"
_MEDIA = "a {}: leave it out"
_SIGNS = {
    b"\x1f\x8b": "gzip data: add .gz to its name",
    b"\x28\xb5\x2f\xfd": "Zstandard data: add .zst to its name",
    b"\xfd7zXZ\x00": "xz data: add .xz to its name",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!\x1a\x07": "a RAR archive: unpack it first",
    b"\x04\x22\x4d\x18": "LZ4 data: unpack it first",
    b"PAR1": "parquet: add .parquet to its name",
    b"ARROW1": f"an Arrow file: {_TABLE}",
    b"FEA1": f"a Feather file: {_TABLE}",
    b"\xff\xff\xff\xff": f"an Arrow stream: {_TABLE}",
    b"ORC": f"an ORC file: {_TABLE}",
    b"Obj\x01": f"an Avro file: {_TABLE}",
    b"SQLite format 3\0": f"an SQLite database: {_TABLE}",
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file: {_TABLE}",
    b"\x93NUMPY": "a numpy array: write its texts as a text or JSON lines first",
    b"GGUF": f"a GGUF file: {_MODEL}",
    **{b"\x80" + bytes([n]): f"a Python pickle: {_PICKLE}" for n in range(2, 6)},
    b"%PDF-": "a PDF: extract its text first",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office document: save it as plain text first",
    b"{\\rtf1": "an RTF document: save it as plain text first",
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF87a", b"GIF89a"), _MEDIA.format("picture")),
    **dict.fromkeys((b"ID3", b"OggS\0", b"fLaC\0"), _MEDIA.format("sound recording")),
    b"\x7fELF": "a program: leave it out",
    b"\x00\x05\x16\x07": "a resource fork of macOS: leave it out",
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer and not the file itself: fetch "
    "it with git lfs pull",
    b"/annex/objects/": "a pointer of git-annex and not the file itself: fetch it with git "
    "annex get",
}
# With which a text may begin, too.
_WORDS = {b"PAR1", b"ARROW1", b"FEA1", b"ORC", b"GGUF", b"GIF87a", b"GIF89a", b"ID3"}
# Further on, as what they begin with may begin a text, or says little.
_LATER = (
    (4, b"1AY&SY", "bzip2 data: add .bz2 to its name"),
    (257, b"ustar", "a tar archive: unpack it first"),
    (4, b"ftyp", _MEDIA.format("video")),
    (8, b"WAVE", _MEDIA.format("sound recording")),
    (8, b"AVI ", _MEDIA.format("video")),
    (8, b"WEBP", _MEDIA.format("picture")),
    (8, b'{"', f"safetensors: {_MODEL}"),  # behind the length of the header
)
_PEEK = 4096  # bytes
_AROUND = 20  # bytes on both sides of one that is not UTF-8, to show how it would read


class NotUTF8(ValueError):
    """Bytes that are no UTF-8 text; the message says which, and what they look like."""


def as_utf8(name: str, text: str) -> bytes:
    r"""A string as UTF-8, which not every string can be.

    Half of a pair of escapes makes one, `"\ud800"` in JSON, and so does a byte of another encoding
    in a word of a command line or the name of a file.

    Args:
        name: of what it was given as.
        text: any string.

    Raises:
        NotUTF8: it holds such a half.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotUTF8(f"{name} must be UTF-8, and holds {_half(text[error.start])}") from error


def writable(text: str) -> str:
    r"""A string with each half of a character as its escape, `\ud800`; all others as they are."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _half(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # as Python keeps a byte
        return f"the byte 0x{code - 0xDC00:02x} of another encoding: remove it"
    return f"\\u{code:04x}, half of a character: remove it"


def recognise(head: bytes) -> str | None:
    """What the first bytes of a file show it to be, such as `UTF-16 (...): convert it with ...`.

    Args:
        head: some thousand bytes, or the whole file.

    Returns:
        What follows `looks like`; None: nothing but text is recognised.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return f"{name} (byte order mark {mark.hex(' ')} at byte 0): {_convert(name)}"
    for sign, meaning in _SIGNS.items():
        if head.startswith(sign) and (sign not in _WORDS or _holds_controls(head[:_PEEK])):
            return meaning
    for place, sign, meaning in _LATER:
        if head.startswith(sign, place) and _is_binary(head[:place]):
            return meaning
    if guessed := _without_mark(head[:_PEEK]):
        return f"{guessed} (without a byte order mark): {_convert(guessed)}"
    return None


def decode(content: bytes, offset: int = 0) -> str:
    """Bytes as text.

    Args:
        content: of a file, or a stretch of it.
        offset: where it begins in the file, for messages.

    Raises:
        NotUTF8: a byte that is not UTF-8, or a NUL, which no text holds; it names the place.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        where = f"byte {offset + at} (0x{content[at]:02x}) is not UTF-8"
        seen = recognise(content) if not offset else None
        guess = f"the text looks like {seen}" if seen else _guess(content, error)
        raise NotUTF8(f"{where}: {guess}") from error
    if (at := text.find("\0")) >= 0:
        place = offset + len(text[:at].encode())
        raise NotUTF8(
            f"byte {place} is NUL (0x00), which no text holds: the file is binary, or damaged. "
            "Remove what is not text"
        )
    return text


def _convert(name: str) -> str:
    return f"convert it with iconv -f {name} -t UTF-8"


def _is_binary(head: bytes) -> bool:
    """Whether what stands before a sign is what stands there in such files, and no line of text."""
    return b"\0" in head or head.startswith((b"BZh", b"RIFF"))


def _holds_controls(content: bytes) -> bool:
    return any(byte < 32 and byte not in b"\t\n\r\f" for byte in content)


def _without_mark(head: bytes) -> str | None:
    """UTF-16 or UTF-32 of mostly Western text, by where its zero bytes are."""
    for width, name in ((4, "UTF-32"), (2, "UTF-16")):
        units = len(head) // width
        if units < 4:
            continue
        zeros = [head[i : units * width : width].count(0) / units for i in range(width)]
        for order, kept in (("LE", 0), ("BE", width - 1)):
            others = zeros[:kept] + zeros[kept + 1 :]
            if zeros[kept] < 0.1 and min(others) > 0.6:
                return name + order
    return None


def _guess(content: bytes, error: UnicodeDecodeError) -> str:
    if error.reason == "unexpected end of data":
        return "the text ends in the middle of a character, so it was cut off. Copy it again"
    around = content[max(0, error.start - _AROUND) : error.start + _AROUND]
    if _holds_controls(around):
        return "this is not text, or damaged. Leave it out, or copy it again"
    western = any(0x80 <= byte < 0xA0 for byte in around)
    name, codec = ("Windows-1252", "CP1252") if western else ("Latin-1", "LATIN1")
    reading = around.decode(codec, "replace")
    return (
        f"it looks like {name} or another 8-bit encoding. If {reading!r} reads right, convert the "
        f"file with iconv -f {codec} -t UTF-8"
    )
