"""model/README.md: what the model was trained from and its results, and how to use it. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from qwen_job import __version__
from qwen_job.atomic import read_limited, sha256_of, write_atomically
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.model_files import is_qwen1, read_config
from qwen_job.facts.model_names import is_qwen1_id
from qwen_job.models.fetch import cached_folder
from qwen_job.report.card_head import head_of
from qwen_job.report.serving import Serving, serving_of
from qwen_job.report.summary import Summary, summarize
from qwen_job.run.folder import RunFolder
from qwen_job.run.pins import pin_key, read_pins
from qwen_job.run.reading import MAX_OBJECT, read_object, whole
from qwen_job.run.scores import HEADING, harness_of, read_scores
from qwen_job.run.sections import ModelSpec
from qwen_job.text import duration

# The first release of transformers with the architecture; tested for Qwen2.
OLDEST = {
    "Qwen2ForCausalLM": "4.37.0",
    "Qwen2MoeForCausalLM": "4.40.0",
    "Qwen3ForCausalLM": "4.51.0",
    "Qwen3MoeForCausalLM": "4.51.0",
    "Qwen3_5ForCausalLM": "5.2.0",
    "Qwen3_5ForConditionalGeneration": "5.2.0",
    "Qwen3_5MoeForCausalLM": "5.2.0",
    "Qwen3_5MoeForConditionalGeneration": "5.2.0",
}
_SETTINGS = ("world_size", "device", "precision", "attention", "seed")
_DATA = ("format", "template", "max_length", "packing", "long_samples", "turn_order", "mask", "learn", "thinking",
         "empty_think", "several_thoughts", "system_prompt")  # fmt: skip
_USE = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/model")
model = AutoModelForCausalLM.from_pretrained("path/to/model", torch_dtype="auto")
chat = [{"role": "user", "content": "你好"}]
prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=TrueOPTIONS)
inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
answer = model.generate(**inputs, max_new_tokens=512)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

It loads with transformers OLDEST or newer, without remote code (`trust_remote_code=True` has no effect).
TEMPLATE
"""
_SERVE = """
```sh
COMMAND
```
SERVER
```python
CLIENT
```

REASONINGvLLM reads the sampling settings from `generation_config.json`, except `do_sample: false`: for greedy answers,
send `temperature: 0`. To chat on a terminal: `qwen-job chat path/to/model`.
"""
_QWEN1 = """
`model.chat` is part of the first generation's code, which is not in this folder. To write a copy in its layout, for
transformers 4.36.2 to 4.44.2, run

```sh
EXPORT
```

Then `AutoModelForCausalLM.from_pretrained("path/to/model-qwen1", trust_remote_code=True)` has
`model.chat(tokenizer, "你好", history=None)`. `--original` is the folder of the original model's files.
"""


def write_model_card(run_dir: Path) -> Path:
    """Write ``run_dir``/model/README.md with data hashes, settings and figures. Hashing the data files takes time.

    Raises:
        EnvironmentFault: model/ is not writable, or somebody edited the card.
    """
    path = RunFolder(run_dir).model / "README.md"
    if _is_edited(path):
        raise EnvironmentFault(f"{path}: was edited, so it is left as it is: add what is new by hand, or remove it")
    try:
        write_atomically(path, card(summarize(run_dir)))
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror})") from error
    return path


def card(summary: Summary) -> str:
    """Return the model card's text."""
    section = summary.section("model")
    from_hub = section.get("source") in ("modelscope", "huggingface")
    name = str(section.get("name") or "unknown").rstrip("/")
    # A path means nothing to others, and may disclose too much.
    base = name if from_hub else Path(name).name
    data = summary.section("data")
    head = head_of(summary, _published(data))
    serving = serving_of(RunFolder(summary.folder).model)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {_cell(summary.name)}",
        f"All weights of `{_cell(base)}`, fine-tuned on conversations with qwen-job {__version__}.",
        "## Use",
        _use(summary, serving),
        "## Serve",
        _serve(serving),
        *_old_chat(summary),
        "## Data",
        _table(("file", "sha256", "weight"), _files(data, summary.folder)),
        "## Settings",
        _table(("setting", "value"), _settings(summary)),
        "## Figures",
        _table(("figure", "value"), _figures(summary)),
        *_scores(summary),
    ]
    return _signed("\n\n".join(parts) + "\n")


def _signed(text: str) -> str:
    """Append a mark by which a card that somebody edited is known."""
    return f"{text}\n<!-- qwen-job {hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def _is_edited(path: Path) -> bool:
    try:
        text = read_limited(path, MAX_OBJECT).decode("utf-8", "replace")
    except (OSError, ValueError):
        return False
    return text != _signed(text.rpartition("\n<!-- qwen-job ")[0])


def _scores(summary: Summary) -> Iterator[str]:
    results = read_scores(summary.evaluation)
    if results:
        yield "## Scores"
        yield f"Measured with {_cell(harness_of(summary.evaluation))}, before and after training, ± standard error."
        yield _table(HEADING, (one.cells for one in results))


def _use(summary: Summary, serving: Serving) -> str:
    options = ", enable_thinking=False" if serving.switch else ""
    text = _USE.strip().replace("OPTIONS", options, 1).replace("OLDEST", _oldest(summary.folder), 1)
    return text.replace("TEMPLATE", _template(summary.section("data"), serving), 1)


def _serve(serving: Serving) -> str:
    """Return how to serve it, and how a request turns reasoning on and off."""
    reasoning = ""
    if serving.switch:
        unasked = "off" if serving.traits and serving.traits.off_unasked else "on"
        reasoning = f"Reasoning is {unasked} unless a request sets `enable_thinking`.\n"
    server = f"\n{serving.needs}\n" if serving.needs else ""
    text = _SERVE.strip().replace("COMMAND", serving.command("path/to/model"), 1).replace("SERVER", server, 1)
    return text.replace("CLIENT", serving.client(), 1).replace("REASONING", reasoning, 1)


def _template(data: Mapping[str, Any], serving: Serving) -> str:
    """Return a sentence on the chat template."""
    written, system = str(data.get("template") or "auto"), data.get("system_prompt")
    if serving.traits is None:
        return "The chat template is ChatML with the system prompt of the training."
    own = "the base model's own" if written == "auto" else f"the file `{_cell(Path(written).name)}`"
    if system is None:
        return f"The chat template is {own}, byte for byte."
    added = "a chat without a system turn gets the system prompt of the training"
    return f"The chat template is {own}, with a line before it: {added}."


def _oldest(run: Path) -> str:
    """Return the oldest transformers that has the model's architecture."""
    classes = read_object(RunFolder(run).model / "config.json").get("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    return next((OLDEST[name] for name in names if name in OLDEST), OLDEST["Qwen2ForCausalLM"])


def _old_chat(summary: Summary) -> Iterator[str]:
    original = original_of(summary.settings)
    if original is not None:
        yield "### `model.chat`"
        yield _QWEN1.strip().replace("EXPORT", export_command("path/to/model", original), 1)


def _published(data: Mapping[str, Any]) -> list[str]:
    """Return the data sets on Hugging Face that were trained on, as a model card there lists them."""
    entries = data.get("train")
    sources = [str(one.get("source")) for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    found = (re.match(r"hf:([^/:]+/[^/:]+)", source) for source in sources)
    return list(dict.fromkeys(one[1] for one in found if one))


def _files(data: Mapping[str, Any], run: Path) -> Iterator[tuple[str, ...]]:
    pins = read_pins(RunFolder(run).sources)
    for split in ("train", "eval"):
        entries = data.get(split)
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and isinstance(source := entry.get("source"), str):
                yield from _fetched(split, source, entry, pins)
            elif isinstance(entry, dict) and entry.get("path"):
                path = Path(str(entry["path"]))
                digest = sha256_of(path) if path.is_file() else "file not found when this was written"
                yield f"{split}: {path.name}", digest, str(entry.get("weight", 1.0))


def _fetched(
    split: str, source: str, entry: Mapping[str, Any], pins: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str, str]]:
    """Yield a data set of a hub by its name, and a file by that of the file: an address may disclose too much."""
    pin, weight = pins.get(pin_key(source, entry.get("revision"))), str(entry.get("weight", 1.0))
    on_hub = source.startswith(("hf:", "ms:"))
    if pin is None:
        yield f"{split}: {source if on_hub else 'an address'}", "not known when this was written", weight
        return
    at = f"{source} at {pin['version']}: " if on_hub else ""
    for file in pin["files"]:
        yield f"{split}: {at}{file['path']}", str(file.get("sha256") or f"git {file.get('git_sha1')}"), weight


def _settings(summary: Summary) -> Iterator[tuple[str, ...]]:
    yield from ((key, str(summary.settings[key])) for key in _SETTINGS if key in summary.settings)
    yield from ((key, str(size)) for key, size in summary.parallel_sizes.items())
    for section, keys in ((summary.section("data"), _DATA), (summary.section("training"), None)):
        yield from ((key, str(section[key])) for key in keys or section if section.get(key) is not None)


def _figures(summary: Summary) -> Iterator[tuple[str, ...]]:
    for label, value in (
        ("Hardware", _hardware(summary)),
        ("Training time, with restarts", duration(seconds) if (seconds := sum(summary.seconds.values())) else None),
        ("Steps", summary.done.get("step") or summary.last("step")),
        ("Tokens trained, excluding padding", int(summary.total("tokens")) or None),
        ("Training loss, last step", summary.last("loss")),
        ("Held-out loss", summary.last("loss", "eval")),
        ("Held-out perplexity", summary.last("perplexity", "eval")),
        ("Tokens per second, median", summary.median("tokens_per_second")),
        ("MFU, median", summary.median("mfu")),
    ):
        if value is not None:
            yield (
                label,
                value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}",
            )


def _hardware(summary: Summary) -> str | None:
    """Return what the last attempt ran on, None where it did not record it."""
    start = summary.attempts[-1].events[0] if summary.attempts else {}
    count, name = whole(start.get("world_size")), start.get("hardware")
    return f"{count:,} x {name}" if count and isinstance(name, str) else None


def _table(heading: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Escape a user's text so that it stays in its cell."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def use_lines(run: Path, settings: Mapping[str, Any]) -> list[str]:
    """Return a line for each way to use ``run``/model: transformers, vLLM, qwen-job chat, and Qwen-1's model.chat."""
    model = RunFolder(run).model
    lines = [
        f"transformers: AutoModelForCausalLM.from_pretrained({str(model)!r}), without trust_remote_code; see the "
        "example in its README.md",
        f"vLLM: {serving_of(model).command(str(model))}",
        f"chat: qwen-job chat {shlex.quote(str(run))}",
    ]
    original = original_of(settings)
    if original is not None:
        lines.append(f"model.chat of the original code: {export_command(str(model), original)}")
    return lines


def export_command(model: str, original: Path | None) -> str:
    """Return the command that exports ``model`` in Qwen-1's layout, with the original's ``*.py`` files."""
    place = shlex.quote(str(original)) if original is not None else "ORIGINAL"
    return (
        f"qwen-job model export {shlex.quote(model)} {shlex.quote(model + '-qwen1')} --layout qwen1 --original {place}"
    )


def original_of(settings: Mapping[str, Any]) -> Path | None:
    """Return the folder of the Qwen-1 model that a run with these ``settings`` started from, None for another model."""
    section = settings.get("model")
    try:
        return original_folder(ModelSpec.read(section)) if isinstance(section, dict) else None
    except ModelError:
        return None


def original_folder(spec: ModelSpec) -> Path | None:
    """Return the folder of the Qwen-1 files that ``spec`` names; None where it is no Qwen-1."""
    try:
        if spec.source == "random":
            return None
        folder = Path(spec.name).expanduser().absolute() if spec.source == "local" else cached_folder(spec)
        if (folder / "config.json").is_file():
            return folder if is_qwen1(read_config(folder)) else None
    except (ModelError, RuntimeError):
        return None
    return folder if is_qwen1_id(spec.name) else None
