"""The pool: a file for each step of a checkout, and for each part of the background work."""
