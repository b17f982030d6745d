"""Converting takes the memory of a few tensors, whatever the size of the model."""

from __future__ import annotations

from pathlib import Path

from benchmarks.convert_memory import ENDINGS, peak_memory
from benchmarks.make_llama import make_llama, synthetic_config
from parity.convert.formats import open_checkpoint

SMALL, LARGE = 8, 44  # layers: 150 MB and 560 MB, with the same largest tensor


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Each reader and each writer once; all nine pairs: `benchmarks/convert_memory.py`."""
    peaks: dict[int, dict[str, float]] = {}
    sizes = {}
    for layers in (SMALL, LARGE):
        path = tmp_path / str(layers)
        make_llama(str(path), synthetic_config(layers, hidden=512))
        stored = open_checkpoint(path).stored.values()
        largest = max(tensor.nbytes for tensor in stored)
        sizes[layers] = sum(tensor.nbytes for tensor in stored)
        peaks[layers], source = {}, path
        for kind in ("orbax", "gguf", "hf"):
            target = tmp_path / f"{layers}-{ENDINGS[kind]}"
            peaks[layers][kind] = peak_memory(source, target, kind)["peak"]
            assert peaks[layers][kind] <= 300e6 + 3 * largest, kind
            source = target
    growth = sizes[LARGE] - sizes[SMALL]
    assert growth > 300e6
    for kind, peak in peaks[LARGE].items():
        # Orbax may or may not hold one more group of 64 MB at the moment of the peak.
        assert peak <= peaks[SMALL][kind] + 0.2 * growth, kind
