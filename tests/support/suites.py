"""A folder with two tasks of lm-eval about the conversation that ``taught`` knows by heart."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.support.taught import ANSWER, QUESTION

WRONG = "No idea"
# datasets' reader of JSON lines; a relative file starts at the folder of the suite.
_ROWS = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test"}
PICK = {
    "task": "pick_answer",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    **_ROWS,
}
SAY = {
    "task": "say_answer",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    **_ROWS,
}


def write_suite(folder: Path, questions: int = 6, answer: str = ANSWER) -> Path:
    """Write pick_answer.yaml (multiple choice), say_answer.yaml (generation) and their rows; return ``folder``."""
    folder.mkdir(parents=True)
    for task in (PICK, SAY):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    rows = [
        {"question": QUESTION, "choices": [f"{WRONG} {n}", answer][:: 1 if n % 2 else -1], "answer": n % 2}
        for n in range(questions)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder
