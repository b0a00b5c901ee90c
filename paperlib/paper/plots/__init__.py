"""Rows to figures. Never runs a model, never reads or writes a file."""
