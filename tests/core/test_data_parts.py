"""The folder of finished shards, and prepared data that is replaced, keep what is not theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from diy_core.data import DataError, prepare
from diy_core.data.parts import parts_of, remove_parts

OPTIONS = {"tokenizer": "bytes", "separator": "\n\n", "validation": 0.3}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"document {i}" for i in range(20)))
    return file


def read(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.mark.parametrize("plan", [None, "{}", "no JSON"])
def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, text: Path, plan: str | None
) -> None:
    folder = tmp_path / ".out.parts"
    folder.mkdir()
    (folder / "00000000.npz").write_bytes(b"mine")
    if plan is not None:
        (folder / "plan.json").write_text(plan)
    before = read(tmp_path)
    with pytest.raises(DataError, match=r"\.out\.parts: holds 00000000\.npz, and no plan of"):
        prepare(text, tmp_path / "out", **OPTIONS)
    assert read(tmp_path) == before


def test_what_others_put_into_the_folder_is_kept_and_named(
    tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with parts_of(tmp_path / "out") as folder:
        (folder / "plan.json").write_text('{"format": 0, "shards": 0, "sources": []}')
        (folder / "00000007.npz").write_bytes(b"of other settings")
        (folder / "notes").write_bytes(b"mine")
    prepare(text, tmp_path / "out", **OPTIONS)
    assert read(folder) == {"notes": b"mine"}
    assert f"{folder} is kept: it holds notes" in capfd.readouterr().err


def test_a_folder_that_another_process_removes_is_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with parts_of(out) as first:
        with pytest.raises(DataError, match="another process is preparing"), parts_of(out):
            pytest.fail("entered")
        (first / "plan.json").write_text("{}")
        remove_parts(first)
        with parts_of(out) as second:  # its folder was removed under the first one
            assert second.is_dir()


def test_prepared_data_is_replaced_and_what_lies_beside_it_is_kept(
    tmp_path: Path, text: Path
) -> None:
    out = tmp_path / "out"
    prepare(text, out, **OPTIONS)
    fresh = read(out)
    (out / "README").write_bytes(b"mine")
    (out / "validation" / "notes").mkdir()
    (out / "validation" / "notes" / "1").write_bytes(b"mine")
    text.write_text(text.read_text() + "\n\none more")
    prepare(text, out, **OPTIONS, overwrite=True)
    kept = {"README": b"mine", "validation/notes/1": b"mine"}
    found = read(out)
    assert found.items() >= kept.items()
    assert found.keys() == fresh.keys() | kept.keys()
    assert found["tokens.bin"] != fresh["tokens.bin"]
