"""Conversations with tools: `data prepare` against transformers' apply_chat_template and tokenizer, on one core each.

    python benchmarks/bench_templates.py --tokenizer FOLDER --template FILE [--samples N]

FOLDER holds the tokenizer.json of a Qwen model, FILE its chat template. Both sides get the same conversations, each
with its own tools, arguments and texts: a system prompt, a question, one or two calls, their results, an answer. The
peer renders each conversation once and tokenizes it; we also read the file, find what is learnt, pack and write. The
tokenizer of FOLDER gets the added tokens of Qwen3's where it lacks them. We prepare a quarter of the conversations and
all of them, each in a process of its own: its peak memory should be the same.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_data_prepare import make_writer
from qwen_job.data import prepare_data
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


def ours(path: Path, folder: Path) -> dict[str, float]:
    """Prepare a file; return the processor seconds after the first chunk, scaled to all rows, and the peak memory."""
    marks: list[tuple[float, int]] = []
    spec = DataSpec(train=(DataFile(path=path),), max_length=4096)

    def note(samples: int) -> None:
        marks.append((time.process_time(), samples))

    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        prepare_data(spec, folder, Path(cache), workers=1, progress=note)
    end = time.process_time()
    (first, before), (_, total) = marks[0], marks[-1]
    if total == before:
        raise SystemExit(f"{path}: is one chunk; write more --samples")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {"seconds": (end - first) * total / (total - before), "peak_rss_mb": peak}


def ours_alone(rows: list[dict[str, Any]], folder: Path, root: Path) -> dict[str, float]:
    """Return what :func:`ours` does of these rows, in a process of its own."""
    path = root / f"{len(rows)}.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    done = subprocess.run([sys.executable, __file__, "--ours", path, folder], check=True, stdout=subprocess.PIPE)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Prepare a quarter of the rows and all of them, and the first of them as transformers does."""
    (root / "model").mkdir()
    folder = model_folder(options.tokenizer, options.template, root / "model")
    talk = make_talk(options.tokenizer)
    rows = [talk(number) for number in range(options.samples)]
    some = rows[: min(2000, len(rows))]
    their_seconds, their_tokens = peer(some, folder)
    by_size = {count: ours_alone(rows[:count], folder, root) for count in (len(rows) // 4, len(rows))}
    theirs, mine = len(some) / their_seconds, len(rows) / by_size[len(rows)]["seconds"]
    return {
        "template": options.template.stem,
        "conversations": options.samples,
        "tokens_per_conversation": round(their_tokens / len(some), 1),
        "transformers_conversations_per_cpu_second": round(theirs),
        "ours_conversations_per_cpu_second": round(mine),
        "times_faster": round(mine / theirs, 1),
        "peak_rss_mb_by_conversations": {count: figures["peak_rss_mb"] for count, figures in by_size.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="folder with a Qwen tokenizer.json")
    parser.add_argument("--template", type=Path, help="a chat template that knows tools")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--ours", nargs=2, type=Path, metavar=("FILE", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(ours(*options.ours)))
        return
    if not (options.tokenizer and options.template):
        parser.error("--tokenizer and --template are required")
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(compare(options, Path(name)), indent=1))


if __name__ == "__main__":
    main()
