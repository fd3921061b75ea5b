"""ChatML, the chat format of Qwen models: its tokens, roles, default system prompt and chat template.

A turn is ``<|im_start|>{role}\\n{text}<|im_end|>\\n``. A default system turn comes first, and
``<|im_start|>assistant\\n`` asks for an answer.
"""

from __future__ import annotations

import json

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
ROLES = ("system", "user", "assistant")
SYSTEM_PROMPT = "You are a helpful assistant."
IGNORE = -100  # the label of a token that is not trained

# How Qwen's tokenizers split text before BPE: contractions, letters with at most one leading character, single
# digits, punctuation, and runs of newlines.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def chat_template(system_prompt: str = SYSTEM_PROMPT) -> str:
    """Return the Jinja template that formats a chat exactly as training does.

    ``system_prompt`` opens chats that have no system turn; if it is empty, none is added.
    """
    opening = ""
    if system_prompt:
        quoted = json.dumps(system_prompt, ensure_ascii=False)
        opening = (
            "{%- if messages and messages[0]['role'] != 'system' -%}"
            "{{- '<|im_start|>system\\n' + " + quoted + " + '<|im_end|>\\n' -}}"
            "{%- endif -%}"
        )
    return (
        opening + "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
