"""Everything that defines a run, without torch."""
