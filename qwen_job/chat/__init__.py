"""Conversations as a model's chat template writes them, and which of their text is learnt. No torch, no tokenizer.

conversation  what readers return and renderers take: a conversation, its turns, calls of tools
sandbox       Jinja as transformers compiles it, with bounded loops
template      a model folder's chat template: find it, render it
"""
