"""What a twin does with runs that are damaged or the other twin's, and with exports of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from diy_core.checkpoints.training_run import FORMS
from diy_core.errors import CheckpointError
from diy_core.system import disk
from diy_core.training.export import export
from tests.training_runs import STEPS, Runs, same_bits
from tests.training_twin_tests import Twin


class DamageTests(Twin):
    """Beside `RunTests`, with whose runs these begin."""

    def damaged(self, runs: Runs, folder: Path, step: int) -> Runs:
        """A copy of `whole`, in which the arrays of this step were cut off."""
        own = self.make(folder)
        shutil.copytree(runs.folder / "whole", own.folder / "whole")
        shutil.copyfile(runs.text, own.text)
        found = [file for file in own.path("whole", step).rglob("*") if file.is_file()]
        file = max(found, key=lambda file: file.stat().st_size)  # arrays, in either form
        file.write_bytes(file.read_bytes()[:100])
        return own

    def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(
        self, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own = self.damaged(runs, tmp_path, STEPS)
        assert own.train("whole", resume=True, data=runs.config("whole").data) == 0
        said = capsys.readouterr().err
        assert f"checkpoint {STEPS} cannot be read, the one before is tried" in said
        assert same_bits(own.state("whole"), runs.state("whole"))

    def test_a_run_of_the_other_twin_is_refused_also_when_it_is_finished(
        self, runs: Runs, tmp_path: Path
    ) -> None:
        own = self.make(tmp_path)
        shutil.copytree(runs.folder / "whole", own.folder / "whole")
        other = next(form for form in FORMS if form != self.store.form)
        for path in (own.folder / "whole" / "checkpoints").iterdir():
            (path / self.store.form).rename(path / other)
        with pytest.raises(
            CheckpointError, match=f"was written by {FORMS[other]}: continue it with"
        ):
            own.train("whole", resume=True, data=runs.config("whole").data)
        command = f"`{FORMS[other]} export {own.folder / 'whole'} --step {STEPS} --out out` makes a"
        with pytest.raises(CheckpointError, match=re.escape(command)):
            export(own.store, own.folder / "whole", None, "out")

    def test_a_model_that_was_edited_in_place_is_found_where_it_is_read(
        self, runs: Runs, tmp_path: Path
    ) -> None:
        own = self.make(tmp_path)
        shutil.copytree(runs.folder / "whole", own.folder / "whole")
        file = own.folder / "whole" / "model" / "config.json"
        text = file.read_text()
        file.write_text(text.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 0.1'))
        assert file.read_text() != text
        with pytest.raises(ValueError, match=r"add --allow-changes model\.rms_norm_eps"):
            own.train("whole", resume=True, data=runs.config("whole").data)
        with pytest.raises(CheckpointError, match=r"rms_norm_eps is 0\.1, and was 1e-05 when"):
            export(own.store, own.folder / "whole", None, tmp_path / "out")

    def test_other_validation_data_are_found(self, runs: Runs, tmp_path: Path) -> None:
        own = self.make(tmp_path)
        shutil.copytree(runs.folder / "whole", own.folder / "whole")
        file = own.folder / "whole" / "data" / "validation" / "data.json"
        file.write_text(file.read_text() + "\n")  # as if it described others
        with pytest.raises(ValueError, match=r"the tokens of the validation data \(SHA-256\): "):
            own.train("whole", resume=True, data=runs.config("whole").data)

    def test_an_export_needs_room(
        self, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            disk.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})
        )
        with pytest.raises(disk.DiskFull, match=r"MB are needed, 0\.0 MB are free"):
            export(runs.store, runs.folder / "whole", None, tmp_path / "out")

    def test_an_export_of_a_damaged_checkpoint_names_the_others(
        self, runs: Runs, tmp_path: Path
    ) -> None:
        own = self.damaged(runs, tmp_path, STEPS)
        with pytest.raises(CheckpointError, match="of step 6, 12, 18: step=18"):
            export(own.store, own.folder / "whole", None, tmp_path / "out")
        for step in (6, 12, 18):
            shutil.rmtree(own.path("whole", step))
        with pytest.raises(CheckpointError, match="there is no other checkpoint in this run"):
            export(own.store, own.folder / "whole", None, tmp_path / "out")
