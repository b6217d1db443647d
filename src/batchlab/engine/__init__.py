"""Data order, step, training loop and gradient trials."""
