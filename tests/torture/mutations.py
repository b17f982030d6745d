"""Damage to files: bytes, JSON documents, safetensors headers, GGUF metadata; all from one seed."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

BAITS = ("../bait.safetensors", "../../bait.safetensors", "folder/bait.safetensors")
_HOLE = "@@{}@@"  # a string in a document, for which text is put in that json.dumps cannot write


def damage_bytes(rng: random.Random, whole: bytes) -> bytes:
    """Flips, inserts, deletes, overwrites, a cut, a piece twice; one to four of them."""
    found = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        length = min(rng.choice((1, 2, 3, 4, 8, 16, 100)), len(found) - at)
        what = rng.randrange(9)
        if what == 0 and length:
            found[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            found[at:at] = rng.randbytes(max(1, length))
        elif what == 2:
            del found[at : at + length]
        elif what == 3:
            found[at : at + length] = rng.randbytes(length)
        elif what == 4:
            found[at : at + length] = rng.choice((b"\0", b"\xff", b"9", b"[", b'"')) * length
        elif what == 5:
            del found[at:]
        elif what == 6:
            found[at:at] = found[max(0, at - 10 * length) : at]
        elif what == 7:
            start = rng.randrange(len(found) + 1)
            found[at : at + length] = found[start : start + length]
        else:
            found[at:at] = rng.choice((b"{", b"}", b",", b":", b"null", b"1e999", b"-", b"\\u0000"))
    return bytes(found)


class _Texts:
    """Values that no `json.dumps` writes, put into the text afterwards."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def hole(self, text: str) -> str:
        name = _HOLE.format(len(self.texts))
        self.texts[json.dumps(name)] = text
        return name

    def fill(self, text: str) -> str:
        for name, value in self.texts.items():
            text = text.replace(name, value)
        return text


def _value(rng: random.Random, texts: _Texts) -> Any:
    """A value that does not belong where it is put."""
    depth = rng.choice((5, 100, 300, 480, 700, 900, 980, 5000, 200_000))
    many = rng.choice((10, 1000, 100_000, 600_000, 2_000_000))
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice((-1, 0, 1, 2, 3, 7, 8, 16, 32, 64, 2**31 - 1, 2**31, 2**32, 2**53 + 1)),
        lambda: rng.choice((2**62, 2**63 - 1, 2**63, 2**64, 10**12, 10**30, -(2**63), -(10**30))),
        lambda: rng.choice((0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"))),
        lambda: rng.choice((True, False, None, "", [], {}, [[]], {"": ""}, [0, 4], [4, 0])),
        lambda: rng.choice(("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "C64", "f32", "F99")),
        lambda: rng.choice(("float32", "bfloat16", "int8", "default", "linear", "llama3", "llama")),
        lambda: rng.choice((*BAITS, "/etc/passwd", "..", ".", "a\0b", "\udc80", "é")),
        lambda: texts.hole(rng.choice(("9" * 5000, "1e999", "-1e999", "1E400", "0" * 50, "01"))),
        lambda: texts.hole("[" * depth + "]" * depth),
        lambda: texts.hole('{"a":' * depth + "1" + "}" * depth),
        lambda: texts.hole("[" * depth),
        lambda: "x" * many,
        lambda: texts.hole("[" + ",".join(["[]"] * many) + "]"),
        lambda: texts.hole("[" + ",".join("0" * many) + "]"),
        lambda: {f"k{i}": i for i in range(min(many, 100_000))},
    ]
    # The large ones are rare: they take time to write.
    weights = [9] * 8 + [2, 2, 2, 1, 1, 1, 1]
    return rng.choices(kinds, weights)[0]()


def _nodes(tree: Any, depth: int = 0) -> list[tuple[int, Any, Any]]:
    """Every (depth, container, key) of a document; a flood of values is one node."""
    if not isinstance(tree, (dict, list)) or len(tree) > 500:
        return []
    keys: Any = list(tree) if isinstance(tree, dict) else range(len(tree))
    return [node for key in keys for node in [(depth, tree, key), *_nodes(tree[key], depth + 1)]]


def damage_document(rng: random.Random, document: Any) -> str:
    """JSON text of a document with one to three values, keys or pieces that are wrong."""
    document, texts = copy.deepcopy(document), _Texts()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        nodes = _nodes(document)
        if not nodes:
            break
        # Equally often at every depth, or what lies near the top would never be met.
        depth = rng.choice(sorted({node[0] for node in nodes}))
        _, holder, key = rng.choice([node for node in nodes if node[0] == depth])
        _, other, other_key = rng.choice(nodes)
        what = rng.randrange(10)
        value = holder[key]
        if what <= 2:
            holder[key] = _value(rng, texts)
        elif what == 3 and isinstance(value, int):
            change = rng.choice((1, -1, 2, 8, -8, value, -2 * value, 1 << rng.randrange(70)))
            holder[key] = value + change
        elif what == 3:
            holder[key] = copy.deepcopy(other[other_key])
        elif what == 4:
            del holder[key]
        elif what == 5:
            other[other_key], holder[key] = copy.deepcopy(value), copy.deepcopy(other[other_key])
        elif isinstance(holder, dict) and what <= 7:
            name = rng.choice(
                (texts.hole(json.dumps(rng.choice(list(holder)))), *BAITS, "x" * 100_000, "\0", "")
            )
            holder[name] = holder.pop(key) if what == 6 else copy.deepcopy(value)
        elif isinstance(holder, dict):
            taken = str(other_key)
            holder[taken] = _value(rng, texts) if what == 8 else copy.deepcopy(value)
        else:
            holder.append(_value(rng, texts))
    text = texts.fill(json.dumps(document))
    if rng.random() < 0.1:  # two documents, or two halves, joined
        at, to = rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)
        text = text[:at] + text[to:]
    return text


def damage_json(rng: random.Random, whole: bytes) -> bytes:
    """A JSON file with damage to its bytes, or to what they say."""
    if rng.random() < 0.35:
        return damage_bytes(rng, whole)
    try:
        document = json.loads(whole)
    except (ValueError, RecursionError):  # damaged before
        return damage_bytes(rng, whole)
    return damage_document(rng, document).encode("utf-8", "surrogatepass")


def damage_config(rng: random.Random, whole: bytes) -> bytes:
    """A config.json with damage as above, or a flood, or a size or two that are far too large."""
    what = rng.random()
    if what < 0.7:
        return damage_json(rng, whole)
    values = json.loads(whole)
    if what < 0.71:
        flood = ",".join([rng.choice(("[]", "{}", "0", '""'))] * rng.choice((50_000, 10**6)))
        return json.dumps(values)[:-1].encode() + f', "flood": [{flood}]}}'.encode()
    sizes = [key for key, value in values.items() if type(value) is int]
    for key in rng.sample(sizes, rng.choice((1, 1, 2))):
        values[key] *= 1 << rng.choice((1, 2, 10, 16, 20, 24, 30, 40, 62))
    return json.dumps(values).encode()


def damage_index(rng: random.Random, whole: bytes) -> bytes:
    """An index with damage as above, or with names of files that are none of the directory."""
    if rng.random() < 0.8:
        return damage_json(rng, whole)
    document = json.loads(whole)
    files = document["weight_map"]
    chosen = rng.sample(list(files), rng.choice((1, 1, len(files))))
    files |= dict.fromkeys(chosen, rng.choice((*BAITS, *BAITS, "..", "", "x" * 300, "a\0b")))
    return json.dumps(document).encode()


def damage_safetensors(rng: random.Random, whole: bytes) -> bytes:
    """A safetensors file with damage to its header; the tensors' bytes stay behind it."""
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + length], whole[8 + length :]
    what = rng.random()
    if what < 0.25:
        damaged = damage_bytes(rng, whole[: 8 + length])
        return damaged if rng.random() < 0.1 else damaged + data
    if what < 0.35:
        sizes = (0, 1, 7, length - 1, length + 1, length + 8, len(whole), 2**20, 2**21 + 1, 2**31)
        size = rng.choice((*sizes, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1, rng.randrange(2**64)))
        return size.to_bytes(8, "little") + header + data
    if what < 0.45:
        header = damage_bytes(rng, header)
    elif what < 0.7:
        header = damage_document(rng, json.loads(header)).encode("utf-8", "surrogatepass")
    else:
        header = _damage_slots(rng, json.loads(header)).encode()
    if rng.random() < 0.1:
        data = rng.choice((data[: rng.randrange(len(data) + 1)], data + bytes(rng.randrange(99))))
    return len(header).to_bytes(8, "little") + header + data


def _damage_slots(rng: random.Random, header: dict[str, Any]) -> str:
    """Entries that are each well formed: other ranges, dtypes, shapes, names."""
    names = [name for name in header if name != "__metadata__"]
    one, two = rng.sample(names, 2)
    a, b = header[one], header[two]
    what = rng.randrange(9)
    if what == 0:
        a["data_offsets"] = b["data_offsets"]
    elif what == 1:
        a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    elif what == 2:
        header[one], header[two] = b, a
    elif what == 3:
        step = rng.choice((-4, 4, 1, -1, 64, 2**40))
        a["data_offsets"] = [offset + step for offset in a["data_offsets"]]
    elif what == 4:
        a["dtype"] = rng.choice(("F16", "BF16", "F64", "I32", "U8", "C64", "F8_E5M2", "BOOL"))
        if rng.random() < 0.7:  # of as many bytes as before
            size = {"F16": 2, "BF16": 2, "F64": 8, "I32": 4, "C64": 8}.get(a["dtype"], 1)
            a["shape"][-1] = a["shape"][-1] * 4 // size
    elif what == 5:
        a["shape"] = rng.choice(
            (a["shape"][::-1], [*a["shape"], 1], [1, *a["shape"]], [-n for n in a["shape"]], [])
        )
    elif what == 6:
        a["shape"] = [2**32, 2**32, *a["shape"]]
    elif what == 7:
        header["extra" if rng.random() < 0.5 else "lm_head.weight"] = {
            "dtype": "F32",
            "shape": [0],
            "data_offsets": [a["data_offsets"][0]] * 2,
        }
    else:
        rows = a["shape"][0] * rng.choice((2, 4, 2**20))
        a["shape"] = [rows, *a["shape"][1:]]
        a["data_offsets"][1] = a["data_offsets"][0] + 4 * rows * (a["shape"] + [1])[1]
    return json.dumps(header)


# GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9


class GGUFPieces:
    """A GGUF file in pieces: raw entries, tensor infos as lists of raw fields, and the data."""

    def __init__(self, whole: bytes) -> None:
        self._whole, self._at = whole, 4
        (self.version,) = self._take("<I")
        self.tensor_count, self.entry_count = self._take("<QQ")
        self.entries = [self._entry() for _ in range(self.entry_count)]
        self.infos = [self._info() for _ in range(self.tensor_count)]
        self.data_at = -(-self._at // 32) * 32
        self.data = whole[self.data_at :]

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self._whole, self._at)
        self._at += struct.calcsize(form)
        return found

    def _string(self) -> bytes:
        (length,) = self._take("<Q")
        self._at += length
        return self._whole[self._at - length : self._at]

    def _entry(self) -> list[Any]:
        """Key, type, and the raw value."""
        key, (kind,) = self._string(), self._take("<I")
        start = self._at
        self._skip(kind)
        return [key, kind, self._whole[start : self._at]]

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            item, count = self._take("<IQ")
            for _ in range(count):
                self._skip(item)
        else:
            self._take("<" + _SCALARS[kind])

    def _info(self) -> list[Any]:
        """Name, number of axes, axes, type, offset."""
        name, (axes,) = self._string(), self._take("<I")
        return [name, axes, list(self._take(f"<{axes}Q")), *self._take("<IQ")]

    def joined(self) -> bytes:
        def u64(number: int) -> bytes:
            return (number % 2**64).to_bytes(8, "little")

        def u32(number: int) -> bytes:
            return (number % 2**32).to_bytes(4, "little")

        found = b"GGUF" + u32(self.version) + u64(self.tensor_count) + u64(self.entry_count)
        for key, kind, raw in self.entries:
            found += u64(len(key)) + key + u32(kind) + raw
        for name, axes, sizes, kind, offset in self.infos:
            found += u64(len(name)) + name + u32(axes)
            found += b"".join(u64(size) for size in sizes) + u32(kind) + u64(offset)
        return found + bytes(-len(found) % 32) + self.data


def _gguf_string(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def damage_gguf(rng: random.Random, whole: bytes) -> bytes:
    """A GGUF file with damage to its metadata or tensor infos; the data stays behind them."""
    pieces = GGUFPieces(whole)
    what = rng.random()
    if what < 0.25:
        head = damage_bytes(rng, whole[: pieces.data_at])
        return head if rng.random() < 0.1 else head + whole[pieces.data_at :]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if what < 0.6:
            _damage_entry(rng, pieces)
        elif what < 0.9:
            _damage_info(rng, pieces)
        else:
            _damage_counts(rng, pieces)
    return pieces.joined()


def _damage_entry(rng: random.Random, pieces: GGUFPieces) -> None:
    at = rng.randrange(len(pieces.entries))
    entry = pieces.entries[at]
    key, kind, raw = entry
    what = rng.randrange(12)
    if kind == _STRING and raw[8:9] == b"{" and rng.random() < 0.7:  # entries of our own, in JSON
        entry[2] = _gguf_string(damage_json(rng, raw[8:]))
    elif what == 0:
        entry[0] = rng.choice((b"", b"x" * 70_000, b"\xff", key + b"\0", b"llama.x", key[:-1]))
    elif what == 1:
        entry[1] = rng.choice((*range(14), 255, 2**31, 2**32 - 1))
    elif what == 2:
        entry[2] = damage_bytes(rng, raw)
    elif what == 3 and kind in _SCALARS:
        entry[2] = rng.choice((b"\0", b"\xff", b"\x7f")) * len(raw)
    elif what <= 5 and kind in _SCALARS:
        number = rng.choice((0, 1, 2, 3, 16, 64, 2**16, 2**20, 2**24, 2**28, 2**31, 2**32 - 1))
        for other in pieces.entries:  # or everywhere where that number stands
            if other is entry or (what == 5 and other[1:] == [kind, raw]):
                other[1:] = [4, struct.pack("<I", number)]
    elif what == 6:
        number = rng.choice((2**40, 2**62, 2**64 - 1))
        entry[1], entry[2] = 10, struct.pack("<Q", number)
    elif what == 7:
        entry[1:] = [
            _STRING,
            _gguf_string(rng.choice((b"", b"llama", b"{}", b"[]", b"\xff", b"1"))),
        ]
    elif what == 8:  # an array of much that is not there, or that is zeros
        item = rng.choice((*_SCALARS, _STRING, _ARRAY))
        count = rng.choice((0, 1, 1000, 10**6, len(pieces.data), 2**32, 2**63, 2**64 - 1))
        size = struct.calcsize(_SCALARS.get(item, "Q"))
        room = bytes(min(count * size, rng.choice((0, 100, len(pieces.data), 10**6))))
        entry[1:] = [_ARRAY, struct.pack("<IQ", item, count) + room]
    elif what == 9:  # arrays of arrays
        depth = rng.choice((1, 2, 100, 900, 10_000))
        entry[1:] = [_ARRAY, struct.pack("<IQ", _ARRAY, 1) * depth + struct.pack("<IQ", 4, 0)]
    elif what == 10:
        pieces.entries.insert(rng.randrange(len(pieces.entries)), list(entry))
        pieces.entry_count += 1
    else:
        del pieces.entries[at]
        pieces.entry_count -= 1
    if rng.random() < 0.15:
        alignment = rng.choice((0, 1, 2, 3, 8, 64, 2**12, 2**20, 2**31, 2**32 - 1))
        pieces.entries.insert(0, [b"general.alignment", 4, struct.pack("<I", alignment)])
        pieces.entry_count += 1


def _damage_info(rng: random.Random, pieces: GGUFPieces) -> None:
    at = rng.randrange(len(pieces.infos))
    info, other = pieces.infos[at], rng.choice(pieces.infos)
    what = rng.randrange(11)
    if what == 0:
        info[0] = rng.choice((b"", b"\xff", b"x" * 70_000, other[0], info[0] + b"\0"))
    elif what == 1:
        info[0], other[0] = other[0], info[0]
    elif what == 2:
        info[1] = rng.choice((0, 1, 2, 3, 4, 5, 100, 2**20, 2**31, 2**32 - 1))
    elif what == 3:
        info[2][rng.randrange(len(info[2]))] = rng.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1))
    elif what == 4:
        info[1], info[2] = 4, [2**32, 2**32, *info[2], 1][:4]
    elif what == 5:
        info[2] = info[2][::-1]
    elif what == 6:
        info[3] = rng.choice((*range(42), 255, 2**31, 2**32 - 1))
    elif what == 7:
        info[4] = rng.choice((0, 1, 32, other[4], info[4] + 32, info[4] - 32, 2**63, 2**64 - 32))
    elif what == 8:
        info[4], other[4] = other[4], info[4]
    elif what == 9:
        pieces.infos[at] = [*info[:3], rng.choice((1, 8, 24, 30)), info[4]]
    else:
        changed = rng.random() < 0.5
        pieces.infos.pop(at) if changed else pieces.infos.insert(at, list(info))
        pieces.tensor_count += -1 if changed else 1


def _damage_counts(rng: random.Random, pieces: GGUFPieces) -> None:
    number = rng.choice((0, 1, 2, 1000, 2**20, 2**32, 2**63, 2**64 - 1))
    what = rng.randrange(5)
    if what == 0:
        pieces.version = rng.choice((0, 1, 2, 4, 2**16, 3 << 24, 2**32 - 1))
    elif what == 1:
        pieces.tensor_count = rng.choice((number, pieces.tensor_count + 1, pieces.tensor_count - 1))
        pieces.data = rng.choice((pieces.data, bytes(2**20)))
    elif what == 2:
        pieces.entry_count = rng.choice((number, pieces.entry_count + 1, pieces.entry_count - 1))
    elif what == 3:
        pieces.data = pieces.data[: rng.randrange(len(pieces.data))]
    else:
        pieces.data += bytes(rng.choice((1, 32, 4096, 2**20)))
