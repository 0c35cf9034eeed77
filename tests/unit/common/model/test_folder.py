"""What is taken for a model's folder, and in which words the rest is refused."""

import json
import shutil
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.model.checks import problem
from common.model.folder import fetched

ROOT = Path(__file__).resolve().parents[4]
TINY = ROOT / "deploy/tiny-qwen3vl"
POINTER = (
    "version https://git-lfs.example.org/spec/v1\n"
    f"oid sha256:{'0' * 64}\n"
    "size 3809432\n"
)  # fmt: skip
INDEX = "model.safetensors.index.json"


def folder_of(path: Path, *names: str) -> Path:
    """A folder with files of these names, config.json among them unless an adapter's is."""
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("{}")
    return path


def shards(folder: Path, *present: str, named: int = 4) -> Path:
    """An index over `named` files of which some are there."""
    names = [f"model-0000{n}-of-0000{named}.safetensors" for n in range(1, named + 1)]
    weight_map = {f"layer.{n}": name for n, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for name in present:
        (folder / name).write_bytes(b"weights")
    return folder


def refusal(model: str) -> str:
    """The one line that a user gets."""
    with pytest.raises(ConfigError) as refused:
        fetched(model, knob="shared.model")
    line = str(refused.value)
    assert line.startswith("shared.model: found ")
    assert ", wanted " in line
    assert "\n" not in line
    return line


def test_a_folder_is_itself_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TINY, tmp_path / "home" / "org" / "model")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    found = [
        fetched(model, knob="--model") for model in ("org/model", "./org/model", "~/org/model")
    ]
    assert {one.path.resolve() for one in found} == {tmp_path / "home" / "org" / "model"}
    assert {(one.name, one.commit) for one in found} == {("model", None)}


def test_the_shipped_model_and_sharded_ones_are_whole(tmp_path: Path) -> None:
    assert problem(TINY) is None
    folder = tmp_path / "sharded"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert problem(shards(folder, *names, named=2)) is None


@pytest.mark.parametrize("model", ["", " ", "ckpt", "a/b/c", "a b/c", "a/b@", "a/../b", "a/b@../c"])
def test_what_is_neither_folder_nor_id_is_refused(model: str) -> None:
    assert f"found {model!r}, neither a folder in {Path.cwd()} nor an id" in refusal(model)


@pytest.mark.parametrize("model", ["/none/here", "./none", "../none/here", "~/none/here"])
def test_a_path_that_leads_nowhere_is_no_id(model: str) -> None:
    expanded = Path(model).expanduser()
    assert f"found no folder {expanded}, wanted a model folder" in refusal(model)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert f"found the file {tmp_path / 'model.gguf'}, wanted the folder" in refusal(
        str(tmp_path / "model.gguf")
    )


def test_an_adapter_has_to_be_merged(tmp_path: Path) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    folder = folder_of(tmp_path / "lora", *names)
    assert "found an adapter (adapter_config.json, no config.json)" in refusal(str(folder))
    assert "merge the adapter into its base model first" in refusal(str(folder))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("model.safetensors",), r"found no config\.json in \S+/ckpt, wanted a model folder"),
        (("model-q4.gguf",), r"found no config\.json in \S+/ckpt \(only model-q4\.gguf\)"),
        (("config.json",), r"found no \*\.safetensors in \S+/ckpt, wanted weights"),
        (
            ("config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
            r"\(only pytorch_model-00001-of-00002\.bin and 1 more file\), wanted weights in that",
        ),
    ],
)
def test_what_is_missing_is_named_with_what_is_there(
    names: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "ckpt", *names)
    with pytest.raises(ConfigError, match=said):
        fetched(str(folder), knob="--model")


@pytest.mark.parametrize("below", ["hf", "snapshots/c2c402"])
def test_a_folder_around_a_model_is_told_where_it_is(below: str, tmp_path: Path) -> None:
    inner = tmp_path / "step-000050" / below
    shutil.copytree(TINY, inner)
    assert refusal(str(tmp_path / "step-000050")).endswith(f"; {inner} looks like one")
    # A checkpoint of ours has a config.json of its own: the run's.
    (tmp_path / "step-000050" / "config.json").write_text("{}")
    assert refusal(str(tmp_path / "step-000050")).endswith(f"; {inner} looks like one")


def test_shards_that_are_missing_are_counted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ckpt", "config.json")
    shards(folder, "model-00002-of-00004.safetensors")
    assert (
        f"found no model-00001-of-00004.safetensors and 2 more files in {folder}, wanted all 4 "
        f"files that {INDEX} names"
    ) in refusal(str(folder))
    (folder / INDEX).write_text("{}")
    assert f"found no weight_map in {folder / INDEX}" in refusal(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_no_content(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(TINY, folder)
    (folder / name).write_text(POINTER)
    assert f"found a Git LFS pointer instead of {name} in {folder}" in refusal(str(folder))
    (folder / "z.safetensors").write_text(POINTER)
    assert f"instead of {name} and 1 more file in {folder}" in refusal(str(folder))
    assert "run `git lfs pull` there" in refusal(str(folder))


def test_a_pointer_that_nobody_loads_does_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(TINY, folder)
    (folder / "demo.mp4").write_text(POINTER)
    assert problem(folder) is None


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (("tokenizer_config.json",), "no tokenizer_config.json"),
        (("tokenizer.json",), "no tokenizer.json or vocab.json or tokenizer.model"),
        (
            ("preprocessor_config.json", "video_preprocessor_config.json"),
            "no preprocessor_config.json or video_preprocessor_config.json or processor_config",
        ),
        (("chat_template.jinja",), "no chat_template.jinja or chat_template.json"),
        (
            ("tokenizer_config.json", "chat_template.jinja"),
            "no tokenizer_config.json, no chat_template.jinja or chat_template.json",
        ),
    ],
)
def test_weights_without_what_makes_their_prompts_are_refused(
    gone: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns(*gone))
    line = refusal(str(folder))
    assert f"found {said}" in line
    assert "copy them from the checkpoint that it was made from" in line
    assert fetched(str(folder), knob="--model", with_weights=False).path == folder


@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json"])
def test_a_template_may_stand_in_another_file(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert problem(folder) is None


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_file_that_was_cut_short_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(TINY, folder)
    (folder / name).write_text((folder / name).read_text()[:-10])
    assert f"found no JSON object in {folder / name}, wanted the file whole" in refusal(str(folder))


@pytest.mark.parametrize("text", ["[]", '{"model_type": ', ""])
def test_a_broken_configuration_is_named(text: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ckpt", "model.safetensors")
    (folder / "config.json").write_text(text)
    assert f"found no JSON object in {folder / 'config.json'}" in refusal(str(folder))


def test_configuration_alone_is_enough_where_nothing_is_loaded(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ckpt", "config.json")
    assert fetched(str(folder), knob="--model", with_weights=False).path == folder
