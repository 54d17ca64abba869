"""What is known of each cell: run records, schedulers, and what follows from both."""
