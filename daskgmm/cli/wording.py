"""Errors of the library in the words of the command line."""

from __future__ import annotations

import re
from typing import Final

_WORDS: Final = tuple(
    (re.compile(pattern), option)
    for pattern, option in (
        (r"columns=\[…\]", "--columns A,B,…"),
        (r"columns=\['([^']*)'\]", r"--columns \1"),
        (r"`columns`", "--columns"),
        (r"`array`", "--array"),
        (r"`filters`|\bfilters\b(?= must)", "--filter"),
        # The least number there is, as Python reads it.
        (
            r"filters=\[\('([^']*)', '>', float\('-inf'\)\)\]",
            r"--filter '\1 > -1e999'",
        ),
        (
            r"Expected n_samples >= n_components but got n_components = (\d+), "
            r"n_samples = (\d+)",
            r"--components \1 is more than there are rows: \2.",
        ),
        (
            r"Found array with (\d+) sample\(s\) while a minimum of (\d+) is required "
            r"by \w+",
            r"STORE has, or --filter leaves, \1 rows: a fit needs \2 at least",
        ),
        (
            r"\bn_samples=(\d+) should be >= n_clusters=(\d+)",
            r"--init-size \1 is less than --components \2",
        ),
        (
            r"X has (\d+) features, but \w+ is expecting (\d+) features as input",
            r"STORE has \1 features, and MODEL was fitted to \2: choose them with "
            r"--columns, if STORE is Parquet",
        ),
        (r"\bX has (\d+) dimension\(s\)", r"STORE has \1 dimension(s)"),
        (r"\bX has (\d+) rows", r"STORE has \1 rows"),
        (r"checkpoint_interval\b", "--checkpoint-interval"),
        (r"^features must", "--features must"),
        (r"^columns names", "--columns names"),
        (r"nan='skip'", "--nan skip"),
        (r"missing_chunks='fill'", "--missing-chunks fill"),
        (r"decode_cf=True", "--decode-cf"),
        (r"decode_cf=False", "--no-decode-cf"),
        (r"storage_options=\{…\}", "--storage-option KEY=VALUE"),
        (r"checkpoint=…", "--checkpoint"),
        (
            r"to score: X has none,",
            "to score: STORE has none, or --filter leaves none,",
        ),
        (r"\bsample_weight\b", "--weights"),
        (r"\breg_covar\b", "--reg-covar"),
        (r"\bmax_iter\b", "--max-iter"),
        (r"\bn_init\b", "--n-init"),
    )
)


def as_options(message: str) -> str:
    """A message with parameters as the options that they are here."""
    for pattern, option in _WORDS:
        message = pattern.sub(option, message)
    return message
