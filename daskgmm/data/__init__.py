"""Rows of every kind."""
