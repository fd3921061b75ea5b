"""Encode conversations with TRL's training templates and return their assistant masks.

The Python of vLLM's environment runs this: ``python in_trl.py WORK ANSWERS``. WORK is JSON: {"tokenizer": a folder,
"chats": [{"template": the model's own text, "messages": ..., "tools": ..., "options": ...}, ...]}; ANSWERS gets a list
of {"ids", "mask"}. As TRL's SFT trainer does it: the template that ships for a model is replaced by the one for
training, which marks what is learnt, and transformers returns the mask. TRL is not imported: it wants more packages.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast


def training_templates() -> dict[str, str]:
    """Return {a model's template: its variant for training}."""
    spec = find_spec("trl")
    assert spec and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "chat_templates"
    variants = {path: path.with_name(f"{path.stem}_training.jinja") for path in folder.glob("*.jinja")}
    return {path.read_text(): training.read_text() for path, training in variants.items() if training.exists()}


def masked(tokenizer: Any, template: str, chat: dict[str, Any]) -> dict[str, list[int]]:
    """Return a chat's tokens, and 1 for each that TRL learns."""
    found = tokenizer.apply_chat_template(
        chat["messages"], tools=chat["tools"], chat_template=template, return_dict=True,
        return_assistant_tokens_mask=True, **chat["options"],
    )  # fmt: skip
    return {"ids": list(found["input_ids"]), "mask": list(found["assistant_masks"])}


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    work = json.loads(source.read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(work["tokenizer"]) / "tokenizer.json"))
    templates = training_templates()
    found = [masked(tokenizer, templates[chat["template"]], chat) for chat in work["chats"]]
    target.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
