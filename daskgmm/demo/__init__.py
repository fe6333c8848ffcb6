"""A data set larger than its memory, fitted and drawn."""
