"""Arrays that wait on disk."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.tracing.record.spool import Spool

ARRAYS: list[Any] = [
    np.arange(6.0).reshape(2, 3),
    np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    np.array(3.5, np.float16),
    np.array([True, False]),
    np.zeros((0, 4)),
    np.array([1.5, np.nan]).astype(ml_dtypes.bfloat16),
    np.array([2**60], np.int64),
]


def test_what_was_put_is_got_in_any_order(request: pytest.FixtureRequest) -> None:
    spool = Spool()
    request.addfinalizer(spool.close)
    places = [spool.put(array) for array in ARRAYS]
    for array, place in list(zip(ARRAYS, places, strict=True))[::-1]:
        found = spool.get(place)
        assert (
            (found.dtype, found.shape) == (array.dtype, array.shape) == (place.dtype, place.shape)
        )
        assert found.tobytes() == array.tobytes()
    found[...] = 0  # it is a copy
    assert spool.get(places[0])[1, 2] == 5
    spool.close()
    with pytest.raises(ValueError):
        spool.get(places[0])
