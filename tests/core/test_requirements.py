"""What is said where a package is missing."""

from __future__ import annotations

import importlib
import sys

import pytest

from diy_core.system.requirements import (
    NotInstalled,
    importing,
    is_installed,
    missing,
    require,
    version,
    versions,
)


def test_versions_are_those_of_the_installed_packages() -> None:
    import numpy

    assert version("numpy") == numpy.__version__
    assert version("no-such-package") is None
    shown = versions(["numpy", "no-such-package"])
    assert f", numpy {numpy.__version__}, no-such-package not installed, Python 3." in shown


@pytest.mark.parametrize("extra", [None, "all"])
def test_the_first_that_is_missing_is_named_with_what_installs_it(
    extra: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("parity check", "torch", "jax")
    monkeypatch.setitem(sys.modules, "jax", None)
    assert not is_installed("jax")
    with pytest.raises(NotInstalled) as error:
        require("parity check", "torch", "jax", extra=extra)
    words = (
        f"parity check needs jax, which is not installed: pip install 'diy-lm[{extra or 'jax'}]'"
    )
    assert str(error.value) == missing("parity check", error.value) == words
    assert missing("parity convert", error.value) == f"parity convert: {words}"


def test_an_import_that_failed_is_told_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, extra in (
        ("torch", "torch"),
        ("orbax.checkpoint", "jax"),
        ("grain", "train"),
        ("yaml", "train"),
        ("matplotlib.pyplot", "all"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError) as error:
            importlib.import_module(module)
        name = module.partition(".")[0]
        expected = f"x train needs {name}, which is not installed: pip install 'diy-lm[{extra}]'"
        assert missing("x train", error.value) == expected
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module("no_such_module")
    assert missing("x train", error.value) == "x train: No module named 'no_such_module'"
    assert missing("x train", ModuleNotFoundError("it is gone")) == "x train: it is gone"


def test_a_package_that_cannot_be_imported_is_told_by_the_extra_it_needs() -> None:
    words = "needs torch, which is not installed: pip install 'diy-lm[torch]'"
    with pytest.raises(NotInstalled) as error, importing("diy_torch"):
        raise ModuleNotFoundError("no", name="torch.nn")
    assert str(error.value) == f"diy_torch {words}"
    # Whoever typed a command did not import a package.
    assert missing("diy-torch generate", error.value) == f"diy-torch generate {words}"
    with pytest.raises(ModuleNotFoundError, match=r"^no$"), importing("diy_torch"):
        raise ModuleNotFoundError("no", name="no_such_module")


def test_a_package_that_is_run_leaves_it_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "generate"])
    with importing("diy_torch"):
        raise ModuleNotFoundError("no", name="torch")
    with pytest.raises(ModuleNotFoundError), importing("diy_torch"):
        raise ModuleNotFoundError("no", name="no_such_module")
