"""``python -m daskgmm`` is the command ``daskgmm``."""

from __future__ import annotations

from daskgmm.cli import main

main()
