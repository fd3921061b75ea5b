"""Conversations, where the readers of data look for them."""

from __future__ import annotations

from qwen_job.chat.conversation import Conversation as Conversation
from qwen_job.chat.conversation import ToolCall as ToolCall
from qwen_job.chat.conversation import Turn as Turn
