"""Conversations with tools: `data prepare` against transformers' apply_chat_template and tokenizer, on one core each.

    python benchmarks/bench_templates.py --tokenizer FOLDER --template FILE [--samples N]

FOLDER holds the tokenizer.json of a Qwen model, FILE its chat template. Both sides get the same conversations, each
with its own tools, arguments and texts: a system prompt, a question, one or two calls, their results, an answer. The
peer renders each conversation once and tokenizes it; we also read the file, find what is learnt, pack and write. The
tokenizer of FOLDER gets the added tokens of Qwen3's where it lacks them.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_data_prepare import make_writer
from qwen_job.data import open_prepared, prepare_data
from qwen_job.run.sections import DataFile, DataSpec

_WORDS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


def make_talk(tokenizer: Path) -> Any:
    """Return a function that makes up one conversation with tools, in OpenAI's form."""
    conversation, choose = make_writer(tokenizer, 400), random.Random(2)

    def text(number: int) -> str:
        return str(conversation(number)["conversations"][1]["value"])

    def tool(number: int) -> dict[str, Any]:
        keys = [f"key_{choose.randint(0, 99)}" for _ in range(choose.randint(1, 3))]
        kinds = {key: {"type": choose.choice(("string", "integer")), "description": text(number)[:60]} for key in keys}
        function = {"name": f"tool_{number}", "description": text(number)[:80]}
        parameters = {"type": "object", "properties": kinds, "required": keys[:1]}
        return {"type": "function", "function": {**function, "parameters": parameters}}

    def call(one: dict[str, Any], number: int) -> dict[str, Any]:
        properties = one["function"]["parameters"]["properties"]
        values = {key: choose.randint(1, 99) if kind["type"] == "integer" else text(number)[:20]
                  for key, kind in properties.items()}  # fmt: skip
        return {"type": "function", "function": {"name": one["function"]["name"], "arguments": values}}

    def talk(number: int) -> dict[str, Any]:
        tools = [tool(number + n) for n in range(choose.randint(1, 3))]
        calls = [call(one, number) for one in tools[: choose.randint(1, 2)]]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text(number)}]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        messages += [{"role": "tool", "content": json.dumps({"found": text(number + 1)[:50]})} for _ in calls]
        messages.append({"role": "assistant", "content": text(number + 2)})
        return {"messages": messages, "tools": tools}

    return talk


def model_folder(tokenizer: Path, template: Path, folder: Path) -> Path:
    """Write a model folder with the tokenizer, the template's tokens and the template."""
    content = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    known = {token["content"] for token in content["added_tokens"]}
    first = max(token["id"] for token in content["added_tokens"]) + 1
    missing = [word for word in _WORDS if word not in known]
    content["added_tokens"] += [
        {**content["added_tokens"][0], "id": first + number, "content": word, "special": False}
        for number, word in enumerate(missing)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template.read_text(encoding="utf-8")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def peer(rows: list[dict[str, Any]], folder: Path) -> tuple[float, int]:
    """Return the processor seconds and the tokens of transformers' way."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.apply_chat_template(rows[0]["messages"], tools=rows[0]["tools"], return_dict=False)  # compiles
    start, tokens = time.process_time(), 0
    for row in rows:
        tokens += len(tokenizer.apply_chat_template(row["messages"], tools=row["tools"], return_dict=False))
    return time.process_time() - start, tokens


def ours(path: Path, folder: Path, cache: Path) -> tuple[float, dict[str, Any]]:
    """Return the processor seconds after the first chunk, scaled to all rows, and the statistics."""
    marks: list[tuple[float, int]] = []
    spec = DataSpec(train=(DataFile(path=path),), max_length=4096)

    def note(samples: int) -> None:
        marks.append((time.process_time(), samples))

    prepared = prepare_data(spec, folder, cache, workers=1, progress=note)
    end = time.process_time()
    (first, before), (_, total) = marks[0], marks[-1]
    return (end - first) * total / (total - before), open_prepared(prepared).stats["train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a Qwen tokenizer.json")
    parser.add_argument("--template", type=Path, required=True, help="a chat template that knows tools")
    parser.add_argument("--samples", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "model").mkdir()
        folder = model_folder(options.tokenizer, options.template, root / "model")
        talk = make_talk(options.tokenizer)
        rows = [talk(number) for number in range(options.samples)]
        (root / "rows.jsonl").write_text(
            "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
        )
        some = rows[: min(2000, len(rows))]
        their_seconds, their_tokens = peer(some, folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        our_seconds, stats = ours(root / "rows.jsonl", folder, root / "cache")
    theirs, mine = len(some) / their_seconds, stats["samples"] / our_seconds
    print(json.dumps({
        "template": options.template.stem,
        "samples": options.samples,
        "tokens_per_sample": round(their_tokens / len(some), 1),
        "transformers_samples_per_cpu_second": round(theirs),
        "ours_samples_per_cpu_second": round(mine),
        "times_faster": round(mine / theirs, 1),
        "max_rss_growth_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
