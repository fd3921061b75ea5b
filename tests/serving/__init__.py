"""Saved folders behind a real server. ``make test-vllm`` runs it, in an environment of its own."""
