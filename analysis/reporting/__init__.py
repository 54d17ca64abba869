"""One HTML page of a sweep."""
