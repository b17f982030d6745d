"""The README's code blocks run, its commands exist, and it stays short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from parity.__main__ import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.model
def test_the_code_blocks_run_one_after_the_other(
    smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    source = "\n".join(blocks)
    assert "models/SmolLM2-135M-Instruct" in source
    source = source.replace("models/SmolLM2-135M-Instruct", str(smollm2))
    scope: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), scope)
    assert capsys.readouterr().out == "The capital of France is Paris.\n" * 2
    assert scope["logits"].shape == (1, len(scope["ids"][0]), 49152)


def test_make_targets_and_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^ +)make ([a-z]+)", README, re.MULTILINE))
    assert {"model", "demo", "test", "setup"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    for line in re.findall(r"^    parity (.*?)(?: +#.*)?$", README, re.MULTILINE):
        build_parser().parse_args(line.split())


def test_what_the_commands_of_the_readme_write_is_no_news_to_git() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"/models/", "/runs/", "/demo-output/"} <= set(ignored)
    written = []
    for line in re.findall(r"^    parity (.*?)(?: +#.*)?$", README, re.MULTILINE):
        options = vars(build_parser().parse_args(line.split()))
        written += [options[key] for key in ("destination", "report", "json") if options.get(key)]
    assert len(written) >= 4
    assert [path for path in written if f"/{Path(path).parts[0]}/" not in ignored] == []


def test_links_lead_somewhere_and_the_page_is_short() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert all((ROOT / link).is_file() for link in links)
    assert len(README.splitlines()) <= 120
