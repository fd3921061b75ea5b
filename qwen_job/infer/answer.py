"""Generate a model's answers: load it for inference, and decode greedily or by sampling, token by token.

- ``Answerer``: prompt ids -> pieces of text, as they are generated
- ``load_answerer``: a model folder -> an Answerer on the best device available
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from qwen_job.chat.chosen import Chosen
from qwen_job.data.encode import ChatTokenizer
from qwen_job.facts.positions import own_length
from qwen_job.infer.prompting import Prompter
from qwen_job.infer.source import Sampling
from qwen_job.models.completeness import check_folder, stop_ids
from qwen_job.models.loading import load_native


class Answerer:
    """A loaded model that continues prompts, and reuses the KV cache of the last prompt."""

    def __init__(self, model: Any, prompter: Prompter, stops: Sequence[int]) -> None:
        self.model, self.prompter, self.stops = model, prompter, frozenset(stops)
        self.tokenizer = prompter.tokenizer
        self.limit = own_length(model.config.to_dict()) or int(model.config.max_position_embeddings)
        self._seen: list[int] = []
        self._cache: Any = None

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
        """Yield the answer to ``prompt`` in pieces of whole characters, up to the first stop token."""
        decoder = _Decoder(self.tokenizer)
        for token in self.tokens(prompt, sampling):
            if piece := decoder.add(token):
                yield piece
        if rest := decoder.rest():
            yield rest

    def tokens(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield the answer's token ids, without the stop token."""
        generator = torch.Generator()
        if sampling.seed is not None:
            generator.manual_seed(sampling.seed)
        logits = self._feed(list(prompt))
        for _ in range(min(sampling.max_new_tokens, self.limit - len(prompt))):
            token = choose(logits, sampling, generator, self._seen)
            if token in self.stops:
                return
            yield token
            logits = self._feed([*self._seen, token])

    def _feed(self, ids: list[int]) -> torch.Tensor:
        """Return the logits [V] after ``ids``; tokens in the cache are not computed again."""
        kept = 0
        while kept < min(len(self._seen), len(ids) - 1) and self._seen[kept] == ids[kept]:
            kept += 1
        if self._cache is not None and kept < len(self._seen):
            self._cache.crop(kept - len(self._seen))
        new = torch.tensor([ids[kept:]], device=self.model.device)
        with torch.inference_mode():
            out = self.model(input_ids=new, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache, self._seen = out.past_key_values, ids
        return out.logits[0, -1].float().cpu()  # type: ignore[no-any-return]


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator, seen: Sequence[int] = ()) -> int:
    """Return the next token id from ``logits`` [V]; ``seen`` are all ids so far, with the prompt."""
    scores, ids = logits[None], torch.tensor([list(seen)], dtype=torch.int64)
    for change in _changes(sampling):
        scores = change(ids, scores)
    if sampling.temperature <= 0:
        return int(scores[0].argmax())
    return int(torch.multinomial(torch.softmax(scores[0], dim=-1), 1, generator=generator))


def _changes(sampling: Sampling) -> list[Any]:
    """Return transformers' logits processors, in its order."""
    from transformers.generation import logits_process as process

    penalty = sampling.repetition_penalty
    found: list[Any] = [process.RepetitionPenaltyLogitsProcessor(penalty)] if penalty > 0 and penalty != 1 else []
    if sampling.temperature <= 0:
        return found
    found.append(process.TemperatureLogitsWarper(float(sampling.temperature)))
    found += [process.TopKLogitsWarper(sampling.top_k)] if sampling.top_k > 0 else []
    found += [process.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    return found + ([process.MinPLogitsWarper(sampling.min_p)] if sampling.min_p > 0 else [])


class _Decoder:
    """Decodes token ids, and holds back bytes until they form a whole character."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer, self._ids, self._shown = tokenizer, list[int](), 0

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        piece, self._shown = text[self._shown :], len(text)
        if text.endswith("\n"):
            self._ids, self._shown = [], 0
        return piece

    def rest(self) -> str:
        return self._tokenizer.decode(self._ids)[self._shown :]


def load_answerer(folder: Path, chosen: Chosen | None = None) -> Answerer:
    """Load a native model folder without remote code; bfloat16 or float16 on a GPU, float32 on a CPU.

    ``chosen``: another chat template than the folder's.

    Raises:
        ModelError: the folder is incomplete, or transformers cannot load it.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    check_folder(folder)
    device, dtype = device_and_dtype()
    model, _ = load_native(folder, dtype, "sdpa")
    return Answerer(model.to(device).eval(), Prompter.load(folder, chosen), stop_ids(folder))


def device_and_dtype() -> tuple[str, torch.dtype]:
    """Return the device and dtype: GPUs before Ampere only emulate bfloat16, so they use float16."""
    if not torch.cuda.is_available():
        return "cpu", torch.float32
    return "cuda", torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
