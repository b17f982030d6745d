"""Text as UTF-8, and what bytes look like that are not."""

from __future__ import annotations

_MARKS = (  # byte order marks; the longer ones first, as one begins with another
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_SIGNS = {
    b"\x1f\x8b": "gzip data: add .gz to its name",
    b"\x28\xb5\x2f\xfd": "Zstandard data: add .zst to its name",
    b"\xfd7zXZ\x00": "xz data: add .xz to its name",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"PAR1": "parquet: add .parquet to its name",
    b"ARROW1": "an Arrow file: save it as parquet or JSON lines first",
    b"%PDF-": "a PDF: extract its text first",
    b"\x89PNG": "a picture: leave it out",
    b"\x00\x05\x16\x07": "a resource fork of macOS: leave it out",
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer and not the file itself: fetch "
    "it with git lfs pull",
    b"/annex/objects/": "a pointer of git-annex and not the file itself: fetch it with git "
    "annex get",
}
_BZIP2 = b"1AY&SY"  # from byte 4 on: a text may begin with BZh
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
        if head.startswith(sign):
            return meaning
    if head.startswith(b"BZh") and head[4:10] == _BZIP2:
        return "bzip2 data: add .bz2 to its name"
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
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in around):
        return "this is no text, or damaged. Leave it out, or copy it again"
    western = any(0x80 <= byte < 0xA0 for byte in around)
    name, codec = ("Windows-1252", "CP1252") if western else ("Latin-1", "LATIN1")
    reading = around.decode(codec, "replace")
    return (
        f"it looks like {name} or another 8-bit encoding. If {reading!r} reads right, convert the "
        f"file with iconv -f {codec} -t UTF-8"
    )
