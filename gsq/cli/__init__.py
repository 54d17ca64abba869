"""The command line: the only place that knows all three rooms; nothing imports it."""
