"""Compiled code: what is done to each row of a block."""
