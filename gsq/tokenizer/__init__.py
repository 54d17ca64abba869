"""A trained tokenizer to use: load, encode, decode, and whole folders of images."""
