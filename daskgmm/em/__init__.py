"""A fit from end to end, and what a fitted mixture says of rows."""
