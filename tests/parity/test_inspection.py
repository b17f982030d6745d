"""`parity inspect` and `parity diff`: what is said about a checkpoint, and about two."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.checkpoints.transfer import transfer
from diy_core.mapping import tensors
from parity.__main__ import main
from parity.convert.formats import KINDS, convert
from parity.inspect import models as inspection
from parity.inspect.diff_report import folded
from tests.oracles import LINEAR, tiny
from tests.tiny_checkpoints import (
    CONFIG,
    DTYPES,
    EMBEDDING,
    HEAD,
    MANIFEST,
    NORM,
    QUERY,
    UNTIED,
    UP,
    Arrays,
    change_one_value,
    put,
    sums,
    weights,
)

Capture = pytest.CaptureFixture[str]


def make(path: Path, kind: str, arrays: Arrays | None = None, config: Any = CONFIG) -> Path:
    """A checkpoint with sums."""
    source = put(path.with_name(f"{path.name}-source"), arrays or weights(config), config)
    convert(source, path, to=kind)
    return path


def record_of(capsys: Capture, *arguments: str, code: int = 0) -> Any:
    """The record on standard output, and nothing else there."""
    assert main([*arguments, "--json", "-"]) == code
    return json.loads(capsys.readouterr().out)


NOT_COMPARED = {"dtypes": None, "values": None, "relative_l2": None, "largest": None}
FORMS = {"hf": "BF16", "orbax": "bfloat16", "gguf": "BF16"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_every_kind(tmp_path: Path, kind: str, capsys: Capture) -> None:
    arrays = weights(UNTIED, "bfloat16")
    path = make(tmp_path / "m", kind, arrays, UNTIED)
    record = record_of(capsys, "inspect", str(path))
    assert record["path"] == str(path)
    assert record["kind"] == kind
    assert record["verified"] is False
    assert record["notes"] == []
    assert record["config"]["hidden_size"] == 16
    assert record["config"]["dtype"] == "bfloat16"
    assert record["manifest"]["source"] == "hf m-source"
    assert record["manifest"]["versions"]["numpy"] == np.__version__
    files = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
    assert record["total"] == {
        "tensors": 21,
        "parameters": sum(array.size for array in arrays.values()),
        "bytes": sum(array.nbytes for array in arrays.values()),
        "bytes_on_disk": sum(len(file.read_bytes()) for file in files),
    }
    assert [row["name"] for row in record["tensors"]] == list(arrays)
    for row in record["tensors"]:
        array = arrays[row["name"]]
        form = "F32" if kind == "gguf" and array.ndim == 1 else FORMS[kind]
        assert row["shape"] == list(array.shape)
        assert (row["dtype"], row["stored_as"], row["bytes"]) == ("bfloat16", form, array.nbytes)
        assert row["sha256"] == sums(arrays)[row["name"]]
    by_name = {row["name"]: row for row in record["tensors"]}
    assert by_name[QUERY]["torch"] == "model.layers.0.attention.q_proj.weight"
    assert by_name[QUERY]["flax"] == "model/layers_0/attention/q_proj/kernel"
    assert by_name[QUERY]["gguf"] == "blk.0.attn_q.weight"
    assert by_name[EMBEDDING]["flax"] == "model/embed_tokens/embedding"


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_for_people(
    tmp_path: Path, kind: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = make(tmp_path / "m", kind, weights(UNTIED), UNTIED)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "m", "--json", str(tmp_path / "record.json")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"m: {KINDS[kind]}\n")
    assert json.loads((tmp_path / "record.json").read_text())["kind"] == kind
    words = " ".join(out.split())
    total = sum(array.size for array in weights(UNTIED).values())
    for part in (
        "hidden_size 16",
        "model.layers.*.self_attn.q_proj.weight",
        "model.layers.*.attention.q_proj.weight",
        "model/layers_*/attention/q_proj/kernel",
        "model/embed_tokens/embedding",
        f"21 tensors, {total:,} parameters",
        "checksums: present, not checked (--verify checks them); written from hf m-source",
    ):
        assert part in words
    # The two layers' queries are one line: their count, and the bytes of both.
    assert re.search(r"layers\.\*\.self_attn\.q_proj\.weight +16 x 16 +float32 +2 +2\.0 kB", out)
    assert re.search(r"embed_tokens\.weight +23 x 16 +float32 +1\.5 kB", out)
    assert ("blk.*.attn_q.weight" in words) == (kind == "gguf")
    assert max(len(line) for line in out.splitlines()) <= 80
    monkeypatch.setenv("COLUMNS", "50")  # names are folded, figures are not
    assert main(["inspect", "m"]) == 0
    out, _ = capsys.readouterr()
    assert re.search(r"16 x 16 +float32 +2 +2\.0 kB", out)
    assert path.exists()


def test_layers_that_are_not_alike_have_lines_of_their_own(tmp_path: Path, capsys: Capture) -> None:
    arrays = weights()
    arrays[QUERY] = arrays[QUERY].astype(np.float16)
    put(tmp_path / "m", arrays)
    assert main(["inspect", str(tmp_path / "m")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "self_attn.q_proj" in line]
    assert [line.split()[4:6] for line in lines] == [["float16", "1"], ["float32", "1"]]


def test_of_a_model_from_memory_it_is_said_what_wrote_it(tmp_path: Path, capsys: Capture) -> None:
    config = {tensor.hf: Stored(tensor.shape, np.dtype("float32")) for tensor in tensors(CONFIG)}
    model = MemoryReader("00000020", CONFIG, config, lambda name: weights()[name])
    transfer(model, functools.partial(HFWriter, tmp_path / "m"))
    version = importlib.metadata.version("diy-lm")
    assert main(["inspect", str(tmp_path / "m"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert f"checksums: all match; written by diy-lm {version}\n" in said
    manifest = tmp_path / "m" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"diy-lm"', '"other"'))
    assert main(["inspect", str(tmp_path / "m"), "--verify"]) == 0
    assert "checksums: all match\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_verify_reads_everything(tmp_path: Path, kind: str, capsys: Capture) -> None:
    path = make(tmp_path / "m", kind)
    assert record_of(capsys, "inspect", str(path), "--verify")["verified"] is True
    assert main(["inspect", str(path), "--verify"]) == 0
    assert "checksums: all match; written from" in capsys.readouterr().out
    other = weights()
    other[UP][0, 0] += 1
    changed = make(tmp_path / "other", kind, other)
    if kind == "gguf":
        old, new = (s[UP].encode() for s in (sums(other), sums(weights())))
        changed.write_bytes(changed.read_bytes().replace(old, new))
    else:
        (changed / MANIFEST).write_bytes((path / MANIFEST).read_bytes())
    assert main(["inspect", str(changed)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(changed), "--verify"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("parity inspect: ")
    assert f"tensor {UP} does not have the SHA-256" in err


def test_without_sums_it_says_so(tmp_path: Path, capsys: Capture) -> None:
    path = put(tmp_path / "m", weights())
    record = record_of(capsys, "inspect", str(path))
    assert record["manifest"] is None
    assert {row["sha256"] for row in record["tensors"]} == {None}
    assert main(["inspect", str(path)]) == 0
    words = "no checksums: `parity convert` and save_pretrained write them"
    assert words in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(path), "--verify"]) == 2
    assert "has no manifest to verify against" in capsys.readouterr().err


def test_sums_of_other_tensors_are_not_shown_as_ours(tmp_path: Path, capsys: Capture) -> None:
    path = put(make(tmp_path / "m", "hf"), weights(UNTIED), UNTIED)
    found = {
        row["name"]: row["sha256"] for row in record_of(capsys, "inspect", str(path))["tensors"]
    }
    assert found == sums(weights()) | {HEAD: None}
    assert main(["inspect", str(path), "--verify"]) == 2
    assert f"the manifest is of other weights: see tensor {HEAD}" in capsys.readouterr().err


def test_notes_and_names_with_brackets_are_printed_as_they_are(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "[bold]").mkdir()
    tables = {"model.rotary_emb.inv_freq": np.ones(2, np.float32)}
    path = put(tmp_path / "[bold]" / "m[v1]", weights() | tables, mine="[/x] [red]")
    convert(path, tmp_path / "copy", to="hf")
    assert main(["inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{path}: Hugging Face directory")
    assert "[/x] [red]" in out
    assert f"note: {path}: 1 rotary table was dropped" in err
    assert f"note: {path}: the config has a key that is not known here" in err
    assert main(["inspect", str(tmp_path / "copy")]) == 0
    assert "written from hf m[v1]" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_what_is_no_checkpoint_is_one_message(
    tmp_path: Path, command: str, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("thesis")
    (tmp_path / "folder").mkdir()
    good = put(tmp_path / "m", weights())
    for name, words in (
        ("gone", "does not exist"),
        ("file", "is not a checkpoint: it begins with b'thes'"),
        ("folder", "is neither a Hugging Face directory"),
    ):
        both = [str(good), str(tmp_path / name)]
        for arguments in [both, both[::-1]] if command == "diff" else [both[1:]]:
            assert main([command, *arguments]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert err.startswith(f"parity {command}: {tmp_path / name}: {words}")
            assert err.count("\n") == 1


# Two checkpoints.


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("one", KINDS)
def test_equal_bits_are_equal_across_kinds(
    tmp_path: Path, one: str, other: str, capsys: Capture
) -> None:
    config = tiny(attention_bias=True, rms_norm_eps=1e-6, rope_scaling=LINEAR)
    arrays = weights(config, "bfloat16")
    paths = [
        str(make(tmp_path / n, kind, arrays, config))
        for n, kind in zip("ab", (one, other), strict=True)
    ]
    assert main(["diff", *paths]) == 0
    wanted = f"equal: {len(arrays)} tensors, bit for bit, and the same config\n"
    assert capsys.readouterr().out == wanted
    assert record_of(capsys, "diff", *paths) == {
        "one": {"path": paths[0], "kind": one, "notes": []},
        "other": {"path": paths[1], "kind": other, "notes": []},
        "equal": True,
        "compared": len(arrays),
        "tensors": [],
        "config": {},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_differences_are_measured_worst_first(
    tmp_path: Path, kind: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_PIECE", 7)
    arrays, draw = weights(), np.random.default_rng(1)
    for name, size in ((NORM, 1e-6), (QUERY, 1e-2), (UP, 1e-4)):
        arrays[name] += (draw.normal(size=arrays[name].shape) * size).astype(np.float32)
    arrays[EMBEDDING][3, 4] *= -2
    one = put(tmp_path / "one", weights())
    other = make(tmp_path / "other", kind, arrays)
    record = record_of(capsys, "diff", str(one), str(other), code=1)
    assert record["equal"] is False
    assert record["config"] == {}
    found = {fault["name"]: fault for fault in record["tensors"]}
    assert found.keys() == {NORM, QUERY, UP, EMBEDDING}
    for name, fault in found.items():
        a, b = weights()[name].astype(np.float64), arrays[name].astype(np.float64)
        expected = np.linalg.norm(b - a) / np.linalg.norm(a)
        assert fault["relative_l2"] == pytest.approx(expected, rel=1e-12)
        assert fault["largest"] == np.abs(b - a).max()
        assert fault["what"] == f"{np.count_nonzero(a != b)} of {a.size} values differ"
        assert (fault["values"], fault["dtypes"]) == (np.count_nonzero(a != b), None)
    values = [fault["relative_l2"] for fault in record["tensors"]]
    assert values == sorted(values, reverse=True)
    assert main(["diff", str(one), str(other), "--json", str(tmp_path / "record.json")]) == 1
    out = capsys.readouterr().out
    assert json.loads((tmp_path / "record.json").read_text()) == record
    row = (f"{found[UP][key]:.2e}" for key in ("relative_l2", "largest"))
    assert [UP, *row, str(found[UP]["values"])] in [line.split() for line in out.splitlines()]
    assert "4 of 20 tensors differ\n" in out


def test_many_differences_are_the_worst_of_them(tmp_path: Path, capsys: Capture) -> None:
    config = tiny(num_hidden_layers=3)
    one = put(tmp_path / "a", weights(config), config)
    other = put(tmp_path / "b", weights(config, seed=1), config)
    assert len(record_of(capsys, "diff", str(one), str(other), code=1)["tensors"]) == 29
    assert main(["diff", str(one), str(other)]) == 1
    assert "29 of 29 tensors differ, the worst 20 above\n" in capsys.readouterr().out


def test_zeros_of_another_sign_differ_by_nothing(tmp_path: Path, capsys: Capture) -> None:
    zero, minus = weights(), weights()
    zero[NORM][:], minus[NORM][:] = 0.0, -0.0
    one, other = put(tmp_path / "a", zero), put(tmp_path / "b", minus)
    (fault,) = record_of(capsys, "diff", str(one), str(other), code=1)["tensors"]
    assert (fault["relative_l2"], fault["largest"]) == (0.0, 0.0)
    minus[NORM][0] = 2.0
    put(other, minus)
    distance = inspection.distance(zero[NORM], minus[NORM])
    assert distance == (float("inf"), 2.0, 1)
    change_one_value(other, QUERY)
    (infinite, small) = inspection.diff(one, other, lambda *_: None)["tensors"]
    assert (infinite["name"], small["name"]) == (NORM, QUERY)


def test_a_small_difference_is_seen_beside_large_values() -> None:
    one, other = np.array([1e300, 1e-300]), np.array([1e300, 3e-300])
    assert inspection.distance(one, other) == (0.0, pytest.approx(2e-300, rel=1e-12), 1)


@pytest.mark.parametrize(
    ("one", "other", "relative", "largest"),
    [
        (1e300, 1.5e300, 0.5, 5e299),
        (1e-200, 2e-200, 1.0, 1e-200),
        (5e-324, 1e-323, 1.0, 5e-324),
        (1.5e308, -1.5e308, 2.0, math.inf),
    ],
)
def test_a_distance_neither_overflows_nor_vanishes(
    one: float, other: float, relative: float, largest: float
) -> None:
    found = inspection.distance(np.full((3, 2), one), np.full((3, 2), other))
    assert found == (pytest.approx(relative), pytest.approx(largest, rel=1e-15), 6)


def test_missing_tensors_shapes_and_dtypes_come_first(tmp_path: Path, capsys: Capture) -> None:
    arrays = weights(UNTIED)
    arrays[UP] = arrays[UP].astype(DTYPES["float16"])
    arrays[NORM] += 1
    one, other = put(tmp_path / "a", weights()), put(tmp_path / "b", arrays, UNTIED)
    record = record_of(capsys, "diff", str(one), str(other), code=1)
    assert record["config"] == {"tie_word_embeddings": [True, False]}
    assert record["compared"] == 21
    head, norm, up = record["tensors"]
    assert head == {"name": HEAD, "what": "not in A"} | NOT_COMPARED
    assert (norm["name"], up["name"]) == (NORM, UP)
    assert up["what"].startswith("float32 in A, float16 in B; ")
    assert up["dtypes"] == ["float32", "float16"]
    back = record_of(capsys, "diff", str(other), str(one), code=1)
    assert back["tensors"][0]["what"] == "not in B"
    assert main(["diff", str(one), str(other)]) == 1
    out = capsys.readouterr().out
    assert "config: tie_word_embeddings is True in A, False in B\n" in out
    assert f"\n{HEAD}: not in A\n1 tensors are float32 in A, float16 in B\ntensor " in out


def test_other_shapes_are_not_compared(tmp_path: Path, capsys: Capture) -> None:
    config = tiny(vocab_size=24)
    one, other = put(tmp_path / "a", weights()), put(tmp_path / "b", weights(config), config)
    record = record_of(capsys, "diff", str(one), str(other), code=1)
    assert record["config"] == {"vocab_size": [23, 24]}
    assert (
        record["tensors"][0]
        == {
            "name": EMBEDDING,
            "what": "shape (23, 16) in A, (24, 16) in B",
        }
        | NOT_COMPARED
    )
    config = dataclasses.replace(config, num_hidden_layers=5)
    many = put(tmp_path / "c", weights(config), config)  # 28 faults of structure first
    assert main(["diff", str(one), str(many)]) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    head = rows.index(["config", "A", "B"])
    assert rows[head + 1 : head + 3] == [
        ["num_hidden_layers", "2", "5"],
        ["vocab_size", "23", "24"],
    ]
    assert f"{EMBEDDING}: shape (23, 16) in A, (24, 16) in B" in lines
    # The nine tensors of three layers are nine lines.
    assert sum(line.endswith(": not in A") for line in lines) == 9
    assert "model.layers.2-4.mlp.up_proj.weight: not in A" in lines
    assert lines[-1] == "47 of 47 tensors differ"


def test_a_kind_of_tensor_of_another_shape_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    config = tiny(num_hidden_layers=3, intermediate_size=24, rope_scaling=LINEAR)
    other = dataclasses.replace(
        config, intermediate_size=32, rope_scaling=dataclasses.replace(LINEAR, factor=8.0)
    )
    one, two = (put(tmp_path / n, weights(c), c) for n, c in (("a", config), ("b", other)))
    assert main(["diff", str(one), str(two)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["config", "A", "B"],
        ["intermediate_size", "24", "32"],
        ["rope_scaling.factor", str(LINEAR.factor), "8.0"],
    ]
    shapes = [line for line in lines if ": shape (" in line]
    assert shapes == [
        f"model.layers.0-2.mlp.{name}_proj.weight: shape {a} in A, {b} in B"
        for name, a, b in (
            ("gate", "(24, 16)", "(32, 16)"),
            ("up", "(24, 16)", "(32, 16)"),
            ("down", "(16, 24)", "(16, 32)"),
        )
    ]
    assert "rope" not in "".join(lines[3:])


def test_layers_that_say_the_same_are_counted() -> None:
    def fault(name: str, what: str) -> dict[str, Any]:
        return {"name": name, "what": what}

    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1, 2, 5, 7, 8)]
    faults = [fault(name, "not in B") for name in names]
    faults += [fault("model.layers.3.mlp.up_proj.weight", "not in A"), fault("x", "not in A")]
    assert list(folded(faults)) == [
        "model.layers.0-2,5,7-8.mlp.up_proj.weight: not in B",
        "model.layers.3.mlp.up_proj.weight: not in A",
        "x: not in A",
    ]


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ({"rms_norm_eps": 1e-4}, {"rms_norm_eps"}),
        ({"rope_theta": 5e5}, {"rope_theta"}),
        ({"rope_scaling": LINEAR}, {"rope_scaling"}),
        ({"max_position_embeddings": 99}, {"max_position_embeddings"}),
        ({"initializer_range": 0.5}, set()),
        ({"extra": {"bos_token_id": 3, "dtype": "x"}}, set()),
    ],
)
def test_only_what_changes_the_function_counts(
    tmp_path: Path, change: dict[str, Any], differ: set[str]
) -> None:
    config = dataclasses.replace(CONFIG, **change)
    one, other = put(tmp_path / "a", weights()), put(tmp_path / "b", weights(), config)
    for pair in ((one, other), (other, one)):
        record = inspection.diff(*pair, lambda *_: None)
        assert record["config"].keys() == differ
        assert record["equal"] == (not differ)


def test_a_quantised_file_differs_by_its_rounding(tmp_path: Path, capsys: Capture) -> None:
    arrays = weights(tiny(intermediate_size=32))
    name = "model.layers.0.mlp.down_proj.weight"
    exact = make(tmp_path / "exact.gguf", "gguf", arrays, tiny(intermediate_size=32))
    reader = gguf.GGUFReader(exact)
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind)
    for tensor in reader.tensors:
        raw = gguf.GGMLQuantizationType.Q8_0 if "ffn_down" in tensor.name else tensor.tensor_type
        data = gguf.quantize(np.array(tensor.data), raw)
        writer.add_tensor(tensor.name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    record = record_of(capsys, "diff", str(exact), str(tmp_path / "small.gguf"), code=1)
    assert {fault["name"] for fault in record["tensors"]} == {name, name.replace("0", "1")}
    assert all(0 < fault["relative_l2"] < 0.01 for fault in record["tensors"])
    inspected = record_of(capsys, "inspect", str(tmp_path / "small.gguf"))
    row = next(row for row in inspected["tensors"] if row["name"] == name)
    assert (row["stored_as"], row["dtype"], row["sha256"]) == ("Q8_0", "float32", None)
    assert inspected["notes"][0].startswith("the sums in the file are of other weights")
    assert inspected["manifest"] is None
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "small.gguf")]) == 0
    forms = re.findall(r"down_proj\.weight .* (Q8_0|float32) ", capsys.readouterr().out)
    assert forms == ["Q8_0"]


def test_both_sides_are_verified_and_their_notes_are_said(tmp_path: Path, capsys: Capture) -> None:
    one, other = (make(tmp_path / name, "hf") for name in "ab")
    assert main(["diff", str(one), str(other), "--verify"]) == 0
    odd = make(tmp_path / "odd", "hf")
    config = json.loads((odd / "config.json").read_text()) | {"pretraining_tp": 2}
    (odd / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    for pair in ((one, odd), (odd, one)):
        record = inspection.diff(*pair, lambda *_: None)
        assert [len(record[side]["notes"]) for side in ("one", "other")] == [
            int(path == odd) for path in pair
        ]
        assert main(["diff", *map(str, pair)]) == 0
        assert capsys.readouterr().err.startswith(f"note: {odd}: pretraining_tp 2 was passed over")
    change_one_value(other, QUERY)
    for pair in ((one, other), (other, one)):
        assert main(["diff", *map(str, pair)]) == 1
        capsys.readouterr()
        assert main(["diff", *map(str, pair), "--verify"]) == 2
        assert f"{other}: tensor {QUERY} does not have the SHA-256" in capsys.readouterr().err


def test_a_config_is_for_the_side_that_has_none(tmp_path: Path, capsys: Capture) -> None:
    plain, bare = put(tmp_path / "m", weights()), make(tmp_path / "bare", "orbax")
    with_config = make(tmp_path / "orbax", "orbax")
    config = (bare / "config.json").rename(tmp_path / "config.json")
    for pair in ((plain, bare), (bare, with_config), (bare, bare)):
        assert main(["diff", *map(str, pair), "--config", str(config)]) == 0
    capsys.readouterr()
    assert main(["diff", str(plain), str(with_config), "--config", str(config)]) == 2
    assert "both have a config of their own: leave --config out" in capsys.readouterr().err


def test_progress_ends_with_the_whole(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    one = make(tmp_path / "a", "hf")
    other = put(tmp_path / "b", weights(UNTIED), UNTIED)
    inspection.diff(one, other, lambda *call: calls.append(call))
    total = sum(array.nbytes for array in weights().values())
    assert (calls[0], calls[-1]) == (("comparing", 0, total), ("comparing", total, total))
    calls.clear()
    inspection.inspect(one, verify=True, progress=lambda *call: calls.append(call))
    assert (calls[0], calls[-1]) == (("verifying", 0, total), ("verifying", total, total))


def test_a_path_that_is_not_utf8_stands_in_a_record(tmp_path: Path, capsys: Capture) -> None:
    path = make(tmp_path / os.fsdecode(b"m\xff"), "hf")
    record = tmp_path / os.fsdecode(b"r\xff.json")
    assert main(["inspect", str(path), "--json", str(record)]) == 0
    assert json.loads(record.read_text("utf-8"))["path"] == str(path)
    capsys.readouterr()
    assert record_of(capsys, "diff", str(path), str(path))["one"]["path"] == str(path)
