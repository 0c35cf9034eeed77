"""Stage A and B in odd surroundings; the whole demo there is `tests/chaos/test_surroundings.py`."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.fixtures.clips import make_clip
from tests.fixtures.servers.surroundings import reason, strangely

ROOT = Path(__file__).resolve().parents[4]
WHY = reason()


@pytest.mark.skipif(WHY is not None, reason=WHY or "")
def test_names_are_utf_8_and_nothing_is_written_beside_the_outputs(tmp_path: Path) -> None:
    folder = tmp_path / "dossier à part"
    make_clip(folder / unicodedata.normalize("NFD", "Kühlschrank 1.mp4"), num_frames=8)
    record = {"video": "Kühlschrank 1.mp4", "timestamp": [0.1, 0.5], "sentence": "öffnet sich"}
    (folder / "anmerkungen ü.jsonl").write_text(
        json.dumps(record | {"duration": 1.0}, ensure_ascii=False) + "\n", encoding="utf-8"
    )

    def run(*arguments: str) -> str:
        command = [sys.executable, "-B", "-m", "tempsamp", "data", *arguments]
        line = strangely(command, folder=folder, PYTHONPATH=str(ROOT), COLUMNS="300")
        done = subprocess.run(line, capture_output=True, encoding="utf-8", timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("convert", "--input", "anmerkungen ü.jsonl", "--output", "Zeilen ü.jsonl")
    assert "öffnet sich" in (folder / "Zeilen ü.jsonl").read_text(encoding="utf-8")
    table = run("preprocess", "--input", "Zeilen ü.jsonl", "--video-root", ".", "--cache", "é")
    assert "written" in table
    assert len([*(folder / "é").glob("*/*/*.safetensors")]) == 1
    made = {unicodedata.normalize("NFC", path.name) for path in folder.iterdir()}
    assert made == {"Kühlschrank 1.mp4", "anmerkungen ü.jsonl", "Zeilen ü.jsonl", "é"}
    assert (folder / "Zeilen ü.jsonl").stat().st_mode & 0o777 == 0o600
