"""Places where data, models and outputs lie."""
