"""Steps to a target at every batch size, measured: what advice is held against."""
