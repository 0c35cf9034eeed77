"""What an export takes over from the checkpoint that a run began with."""

from pathlib import Path

from services.learner.state.checkpoint import carry_over


def test_settings_are_carried_over_and_the_index_of_other_weights_is_not(tmp_path: Path) -> None:
    start, export = tmp_path / "start", tmp_path / "export"
    for folder in (start, export):
        folder.mkdir()
    names = ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja")
    for name in (*names, "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (start / name).write_text("start")
    (export / "config.json").write_text("export")
    carry_over(start, export)
    assert {path.name for path in export.iterdir()} == set(names)
    assert (export / "config.json").read_text() == "export"
