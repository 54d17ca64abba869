"""What a user writes: sweep files, search spaces, cluster files."""
