"""Tables, and which of their rows count."""
