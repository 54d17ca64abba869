"""Laws fitted to rows, with intervals."""
