"""Where the pages of estimators in notebooks link to."""

from __future__ import annotations

import dask


class Documented:
    """An estimator whose page in a notebook links to its description.

    scikit-learn asks for these names, and shows no link where the address is empty.
    """

    _doc_link_module = "daskgmm"

    @property
    def _doc_link_template(self) -> str:
        url = dask.config.get("daskgmm.documentation-url") or ""
        page = "/api/generated/daskgmm.{estimator_name}.html"
        return f"{url.rstrip('/')}{page}" if url else ""
