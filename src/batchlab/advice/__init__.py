"""Which batch size to use, and why: measured, predicted, tested."""
