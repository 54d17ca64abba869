"""Questions asked of a fit before its numbers are quoted."""
