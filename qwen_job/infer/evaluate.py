"""``qwen-job evaluate``: held-out loss and sample answers, before and after training, side by side.

- ``evaluate``: a run (or a model) and a file of conversations -> an ``Evaluation``
- ``held_out_loss``: mean cross-entropy of the answer tokens, as the trainer computes it
- ``as_text``: the result as text
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_job.atomic import sha256_of
from qwen_job.chat.chosen import AUTO, CHATML, choose
from qwen_job.chat.conversation import Conversation
from qwen_job.chat.template import TEMPLATE_FILE, Unrenderable
from qwen_job.chatml import IGNORE
from qwen_job.data import open_prepared, prepare_data
from qwen_job.data.chunk_encoder import read_row
from qwen_job.data.formats import RecordError
from qwen_job.data.rows import read_rows
from qwen_job.data.sample import sample_texts
from qwen_job.data.sources import local_files
from qwen_job.data.writers import settings_of
from qwen_job.errors import DataError, QwenJobError, UsageError
from qwen_job.facts.data_names import shown
from qwen_job.infer.chat import quiet
from qwen_job.infer.columns import side_by_side
from qwen_job.infer.source import ChosenModel, Sampling, find_model
from qwen_job.models import ensure_model
from qwen_job.run.folder import HELD_OUT, RunFolder
from qwen_job.run.sections import DataFile, DataSpec, ModelSpec
from qwen_job.text import visible_lines

if TYPE_CHECKING:
    from qwen_job.data.prepared import PackedRows
    from qwen_job.infer.answer import Answerer

Notify = Callable[[str], None]
_BATCH_TOKENS = 4096
_LOGIT_ROWS = 512  # 512 x 151,936 x 4 bytes are 0.3 GB


@dataclass(frozen=True)
class Loss:
    """Cross-entropy per trained token (natural logarithm), and its exponential."""

    loss: float
    perplexity: float


@dataclass(frozen=True)
class SampleAnswer:
    """A question, its reference answer, and the model's answers before and after training (``before`` may be None)."""

    prompt: str
    reference: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Evaluation:
    """The result; ``tokens`` counts the tokens in the loss."""

    model: str
    data: str
    sha256: str
    conversations: int
    tokens: int
    before: Loss | None
    after: Loss
    answers: list[SampleAnswer]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def evaluate(
    path: Path,
    data: str | Path | None = None,
    *,
    samples: int = 5,
    before: bool = True,
    max_new_tokens: int = 128,
    progress: Notify,
) -> Evaluation:
    """Measure the model of a run folder or a model folder on conversations in any supported format.

    ``data``: a file, or a name of data, whose files are fetched; a name of the run's own data means the run's version.
    None: what the run holds out, its first entry of data.eval or the share of data.eval_split.

    With ``before``, the model that the run started from is measured as well; if it is not available any more, a line
    reports it and its column is omitted.

    Raises:
        ModelError: there is no model.
        DataError: the file has no conversations with an answer.
        UsageError: ``data`` is None, and the run holds nothing out.
    """
    target = find_model(path)
    data = _held_out_of(target) if data is None else data
    files = _files(target, [data], progress)
    spec = _spec(target, files)
    questions = [_question(conversation, spec) for conversation in _conversations(files, spec, samples)]
    first = first_model(target, progress) if before else None
    quiet()
    results = [_measure(folder, spec, target, questions, max_new_tokens, progress) for folder in (first, target.model)]
    old, new = results
    assert new is not None
    befores = [answer for _, answer in old.answers] if old else [None] * len(questions)
    answers = zip(questions, befores, new.answers, strict=True)
    return Evaluation(
        model=str(target.model),
        data=shown(data),
        sha256=_sha256(files),
        conversations=new.conversations,
        tokens=new.tokens,
        before=old.loss if old else None,
        after=new.loss,
        answers=[SampleAnswer(_asked(one), reference, was, now) for one, was, (reference, now) in answers],
    )


def _held_out_of(target: ChosenModel) -> str | Path:
    """Return what a run holds out."""
    section = target.section("data")
    listed, share = section.get("eval"), section.get("eval_split")
    if isinstance(listed, list) and listed:
        first = listed[0]
        return str((first.get("source") or first.get("path")) if isinstance(first, dict) else first)
    if target.run is not None and RunFolder(target.run).held_out.is_file():
        return RunFolder(target.run).held_out
    why = f"{target.run} holds nothing out" if target.run else "this is a model, not a run"
    if share:
        why = f"the run has no {HELD_OUT}, which an earlier version did not write"
    raise UsageError(f"--data FILE is required, because {why}: name conversations that were not used in training")


@dataclass(frozen=True)
class _Measured:
    loss: Loss
    tokens: int
    conversations: int
    answers: list[tuple[str, str]]  # the data's, the model's


def _files(target: ChosenModel, named: Sequence[str | Path], progress: Notify) -> list[Path]:
    """Return files in place of names, from the cache of the run."""
    caches = [target.section(section).get("cache_dir") for section in ("data", "model")]
    cache = next((Path(str(one)) for one in caches if one), None)
    return local_files(named, cache, progress, target.run and RunFolder(target.run).sources)


def _sha256(files: Sequence[Path]) -> str:
    """Return the hash of a file; of several, that of their hashes, one a line."""
    hashes = [sha256_of(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _spec(target: ChosenModel, files: Sequence[Path]) -> DataSpec:
    """Return the run's data settings for these files: the same prompt, mask and length give comparable losses."""
    section, rows = target.settings.get("data"), tuple(DataFile(path=path) for path in files)
    own = DataSpec.read(section) if isinstance(section, dict) else DataSpec(train=rows, max_length=2048)
    changed = {"train": rows, "eval": (), "eval_split": 0.0, "packing": False, "cache_dir": None}
    if own.template not in (AUTO, CHATML):  # the file may be on another machine, and the model's folder has it
        changed["template"] = str(target.model / TEMPLATE_FILE)
    return own.model_copy(update=changed)


def _conversations(files: Sequence[Path], spec: DataSpec, count: int) -> list[Conversation]:
    found: list[Conversation] = []
    ignored = frozenset(spec.ignore_keys)
    for data, row, value in ((path, *read) for path in files for read in read_rows(path)):
        if len(found) == count:
            break
        try:
            conversation = read_row(value, spec.format, spec.turn_order, ignored)
        except RecordError as error:
            raise DataError(f"{data}: row {row}: {error}; 'qwen-job data check' lists all invalid rows") from None
        if conversation:
            found.append(conversation)
    return found


def _question(conversation: Conversation, spec: DataSpec) -> Conversation:
    """Return the turns up to the first answer that is learnt."""
    answers = [at for at, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    learnt = [at for at in answers if conversation.turns[at].learn is not False] or answers
    return conversation._replace(turns=conversation.turns[: learnt[-1 if spec.learn == "last" else 0] + 1])


def _asked(conversation: Conversation) -> str:
    """Return the last question before the answer."""
    return next((turn.text for turn in reversed(conversation.turns) if turn.role == "user"), "")


def first_model(target: ChosenModel, progress: Notify) -> Path | None:
    """Return the folder of the model that a run started from, None (and a line of text) where it cannot be had."""
    section, rows = target.section("model"), target.section("data").get("train")
    if target.run is None or not section:
        return None
    listed = [entry for entry in rows if isinstance(entry, dict)] if isinstance(rows, list) else []
    names = [str(entry.get("source") or entry["path"]) for entry in listed if "source" in entry or "path" in entry]
    try:
        return ensure_model(
            ModelSpec.read(section),
            output_dir=target.run,
            texts=lambda: sample_texts(_files(target, names, progress)),
        )
    except QwenJobError as error:
        progress(f"the model before training is not available: {error}")
        return None


def _measure(
    folder: Path | None,
    spec: DataSpec,
    target: ChosenModel,
    questions: list[Conversation],
    max_new_tokens: int,
    progress: Notify,
) -> _Measured | None:
    if folder is None:
        return None
    from qwen_job.infer.answer import load_answerer

    progress(f"evaluating {folder}")
    answerer = load_answerer(folder, choose(AUTO, target.model))
    with tempfile.TemporaryDirectory() as scratch:
        rows = open_prepared(prepare_data(spec, folder, Path(scratch), workers=1)).train
        loss, tokens = held_out_loss(answerer, rows)
        count = len(rows)
    sampling = Sampling(max_new_tokens=max_new_tokens)
    answers = [_answer(answerer, question, spec, sampling) for question in questions]
    return _Measured(Loss(loss, math.exp(min(loss, 700.0))), tokens, count, answers)


def _answer(answerer: Answerer, question: Conversation, spec: DataSpec, sampling: Sampling) -> tuple[str, str]:
    """Return the data's answer and the model's, reasoning and calls written out."""
    try:
        ids, reference = answerer.prompter.question(question, settings_of(spec))
    except Unrenderable as error:
        raise DataError(f"{spec.train[0].path}: {error}; 'qwen-job data check' lists all invalid rows") from None
    return reference, "".join(answerer.stream(ids[-answerer.limit + 1 :], sampling))


def held_out_loss(answerer: Answerer, rows: PackedRows) -> tuple[float, int]:
    """Return (mean cross-entropy, trained tokens) over all rows of unpacked data; every token has the same weight."""
    total, count = 0.0, 0
    for batch in _batches(rows):
        part, tokens = _batch_loss(answerer.model, [rows[index] for index in batch])
        total, count = total + part, count + tokens
    if not count:
        raise DataError("the file has no answer within max_length to evaluate")
    return total / count, count


def _batches(rows: PackedRows) -> Iterator[list[int]]:
    """Group rows of similar length, at most _BATCH_TOKENS with padding."""
    lengths = rows.row_lengths().tolist()
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _batch_loss(model: Any, rows: list[Any]) -> tuple[float, int]:
    import torch
    from torch.nn import functional as F  # noqa: N812 (the usual name)

    longest = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, attended = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row.input_ids)] = torch.from_numpy(row.input_ids).long()
        labels[index, : len(row.labels)] = torch.from_numpy(row.labels).long()
        attended[index, : len(row.input_ids)] = 1
    device = model.device
    with torch.inference_mode():
        out = model.base_model(input_ids=ids.to(device), attention_mask=attended.to(device), use_cache=False)
        targets = labels[:, 1:].to(device)
        chosen = targets != IGNORE
        hidden, wanted = out.last_hidden_state[:, :-1][chosen], targets[chosen]
        total = 0.0
        for start in range(0, len(wanted), _LOGIT_ROWS):
            logits = model.get_output_embeddings()(hidden[start : start + _LOGIT_ROWS]).float()
            total += F.cross_entropy(logits, wanted[start : start + _LOGIT_ROWS], reduction="sum").item()
    return total, len(wanted)


def as_text(result: Evaluation, width: int) -> str:
    """Return the result as text, with answers side by side in ``width`` columns."""
    lines = [f"{result.conversations} conversations, {result.tokens:,} answer tokens of {result.data}", ""]
    for name, loss in (("before", result.before), ("after", result.after)):
        if loss:
            lines.append(f"{name:<7} loss {loss.loss:.4f}   perplexity {loss.perplexity:,.2f}")
    for answer in result.answers:
        columns = {"reference": answer.reference, "before": answer.before, "after": answer.after}
        shown = {name: text for name, text in columns.items() if text is not None}
        lines += ["", f"? {answer.prompt}", *side_by_side(shown, width)]
    return "\n".join(visible_lines(line, None) for line in lines)
