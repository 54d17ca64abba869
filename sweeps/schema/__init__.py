"""What the columns of a results table are, and tests on them; knows nothing of runs."""
