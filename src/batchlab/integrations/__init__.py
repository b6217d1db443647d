"""Probes in a loop of the user's own: plain PyTorch, Lightning, Hugging Face; and writers."""
