"""Arrays in files: parts are read from the file that was opened, whatever becomes of its name."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from diy_core.errors import CheckpointError
from diy_core.system.array_file import ArrayFile
from tests.odd_files import ODD_FILES, put_odd_file

VALUES = np.arange(1000, 1100, dtype="<u2")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    VALUES.tofile(tmp_path / "x")
    return tmp_path / "x"


def test_parts_are_those_of_an_array(file: Path) -> None:
    array = ArrayFile(file, "<u2")
    assert (array.size, len(array), array.nbytes, array.dtype) == (100, 100, 200, VALUES.dtype)
    for part in (slice(None), slice(3, 7), slice(-5, None), slice(90, 200), slice(7, 3)):
        assert array[part].dtype == VALUES.dtype
        np.testing.assert_array_equal(array[part], VALUES[part])
    assert (array[0], array[99], array[-1]) == (1000, 1099, 1099)
    assert list(array) == VALUES.tolist()
    np.testing.assert_array_equal(np.asarray(array), VALUES)
    assert np.asarray(array, np.int64).dtype == np.int64
    assert array.sha256() == hashlib.sha256(VALUES.tobytes()).hexdigest()


def test_what_an_array_does_otherwise_is_refused(file: Path) -> None:
    array = ArrayFile(file, "<u2")
    with pytest.raises(IndexError):
        array[100]
    with pytest.raises(ValueError, match="are read in order, got a step of 2"):
        array[::2]
    with pytest.raises(ValueError, match="it has to be copied"):
        np.asarray(array, copy=False)
    with pytest.raises(ValueError, match="read-only"):
        array[:3][0] = 1


def test_a_file_that_becomes_shorter_is_an_error(file: Path) -> None:
    array = ArrayFile(file, "<u2")
    os.truncate(file, 199)
    assert array[98] == 1098
    for look in (lambda: array[99], lambda: array[:], array.sha256):
        with pytest.raises(CheckpointError, match="x: has become shorter while it was read"):
            look()


def test_a_file_that_is_replaced_is_held(file: Path) -> None:
    array = ArrayFile(file, "<u2")
    (file.parent / "y").write_bytes(bytes(200))
    os.replace(file.parent / "y", file)
    assert array[:3].tolist() == [1000, 1001, 1002]
    assert pickle.loads(pickle.dumps(array))[:3].tolist() == [0, 0, 0]  # opened anew


def test_the_file_is_closed_with_the_array(file: Path) -> None:
    array = ArrayFile(file, "<u2")
    descriptor = array._descriptor
    os.fstat(descriptor)
    del array
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_only_regular_files_are_opened(file: Path, kind: str) -> None:
    put_odd_file(file, kind)
    with pytest.raises(CheckpointError, match=ODD_FILES[kind]):
        ArrayFile(file, "<u2")
