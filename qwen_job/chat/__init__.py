"""Conversations as a model's chat template writes them, and which of their text is learnt. No torch, no tokenizer.

conversation  what readers return and renderers take: a conversation, its turns, calls of tools
sandbox       Jinja as transformers compiles it, with bounded loops
bounds        the largest texts and lists that a template may make (sandbox)
template      a model folder's chat template: find it, render it
traits        what a template can do, found by rendering probes
settings      the settings of a job that decide what is rendered and learnt
messages      a conversation as a template takes it, lookalikes of control tokens marked
settle        what the settings make of a conversation before it is rendered
chosen        the template of a job: the model's own, ChatML or a file
placeholders  what conversations of one structure share, and what differs (outline)
outline       samples by structure: a template is rendered once for many conversations
samples       a conversation as sequences of pieces, learnt or not: what is trained
"""
