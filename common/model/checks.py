"""What keeps a model folder from being loaded: names and small files → one line, or nothing.

Local folders and what was fetched pass the same checks; what is in the tensors is not looked at.
Neighbours: `common.model.folder` and `common.model.hub`.
"""

import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model")
"""Configuration, tokenizer and processor; *.model is sentencepiece's."""
WEIGHTS = "*.safetensors"
FILES = (*SETTINGS, WEIGHTS)
"""All that a model is loaded from: nothing else is fetched, and nothing else is its identity."""
WANTED = "a model folder, or an id: ORG/NAME or ORG/NAME@revision"
POINTER = b"version https://git-lfs"
MAX_POINTER_BYTES = 1024
TOKENIZER = ("tokenizer_config.json",)
VOCABULARY = ("tokenizer.json", "vocab.json", "tokenizer.model")
PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
TEMPLATE = ("chat_template.jinja", "chat_template.json")
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".npz")


Say = Callable[[str], None]
"""Takes what is being done, a sentence at a time, from any thread."""


def problem(folder: Path, *, with_weights: bool = True) -> str | None:
    """What keeps a folder from being loaded, as far as names and small files tell; or None."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if "config.json" not in names:
        return _no_config(folder, names)
    needed = FILES if with_weights else SETTINGS
    if pointers := [name for name in names if matches(name, needed) and _pointer(folder / name)]:
        return (
            f"found a Git LFS pointer instead of {_listed(pointers)} in {folder}, wanted the "
            "content: run `git lfs pull` there"
        )
    if not isinstance(_json(folder / "config.json"), dict):
        return f"found no JSON object in {folder / 'config.json'}, wanted a model's configuration"
    return _no_weights(folder, names) or _no_prompts(folder, names) if with_weights else None


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name has one of these forms."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _no_config(folder: Path, names: Sequence[str]) -> str:
    if "adapter_config.json" in names:
        return (
            f"found an adapter (adapter_config.json, no config.json) in {folder}, wanted a whole "
            "model: merge the adapter into its base model first (PEFT: merge_and_unload, then "
            "save_pretrained)"
        )
    return f"found no config.json in {folder}{_others(names)}, wanted {WANTED}{_hint(folder)}"


def _no_weights(folder: Path, names: Sequence[str]) -> str | None:
    """What is wrong with the names of the weights; or None."""
    if not any(matches(name, (WEIGHTS,)) for name in names):
        return (
            f"found no {WEIGHTS} in {folder}{_others(names)}, wanted weights in that format"
            f"{_hint(folder)}"
        )
    for index in (folder / name for name in names if name.endswith(".safetensors.index.json")):
        document = _json(index)
        shards = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(shards, dict):
            return f"found no weight_map in {index}, wanted the index of the weights beside it"
        wanted = {str(shard) for shard in shards.values()}
        if missing := sorted(wanted.difference(names)):
            return (
                f"found no {_listed(missing)} in {folder}, wanted all {len(wanted)} files that "
                f"{index.name} names"
            )
    return None


def _no_prompts(folder: Path, names: Sequence[str]) -> str | None:
    """What lacks to make the prompt that the model was trained on; or None.

    Libraries fill in for some of these files, and then the model reads another prompt: quietly.
    """
    for name in (*TOKENIZER, *VOCABULARY, *PROCESSOR, *TEMPLATE):
        if name in names and name.endswith(".json") and not isinstance(_json(folder / name), dict):
            return f"found no JSON object in {folder / name}, wanted the file whole: copy it again"
    kinds = [TOKENIZER, VOCABULARY, PROCESSOR]
    if not _template_beside(folder):
        kinds.append(TEMPLATE)
    if missing := [" or ".join(kind) for kind in kinds if not any(name in names for name in kind)]:
        return (
            f"found no {', no '.join(missing)} in {folder}, wanted tokenizer, processor and chat "
            "template beside the weights: copy them from the checkpoint that it was made from"
        )
    return None


def _template_beside(folder: Path) -> bool:
    """Whether a chat template stands in a file of something else, as older folders have it."""
    documents = [_json(folder / name) for name in (*TOKENIZER, "processor_config.json")]
    return any(isinstance(one, dict) and one.get("chat_template") for one in documents)


def _pointer(file: Path) -> bool:
    """Whether a file is what Git leaves where Git LFS did not fetch the content."""
    if file.stat().st_size > MAX_POINTER_BYTES:
        return False
    with file.open("rb") as opened:
        return opened.read(len(POINTER)) == POINTER


def _json(file: Path) -> Any:
    """None when it is no JSON, or not there."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 1
    return names[0] + (f" and {more} more file{'s' * (more > 1)}" if more else "")


def _others(names: Sequence[str]) -> str:
    others = [name for name in names if name.endswith(OTHER_WEIGHTS)]
    return f" (only {_listed(others)})" if others else ""


def _hint(folder: Path) -> str:
    """A checkpoint of ours holds the model one folder down, a cache of the hub two."""
    below = [
        config.parent
        for pattern in ("*/config.json", "snapshots/*/config.json")
        for config in sorted(folder.glob(pattern))
        if any(config.parent.glob(WEIGHTS))
    ]
    return f"; {below[-1]} looks like one" if below else ""
