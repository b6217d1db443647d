"""Records in SQLite, checkpoints in safetensors files."""
