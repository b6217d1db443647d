"""What is measured: small accumulators (`update`, `merge`, `compute`) with pure maths inside."""
