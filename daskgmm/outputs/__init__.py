"""Answers written to Zarr and Parquet, and resumed."""
