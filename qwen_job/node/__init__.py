"""Checks that run on each node before training."""
