"""What notebooks show of estimators: their description, what was fitted, mistakes."""

from __future__ import annotations

from typing import Any

import dask

from daskgmm.errors import ParameterError


class Documented:
    """An estimator whose page in a notebook links to its description, and shows a fit.

    scikit-learn asks for these names, and shows no link where the address is empty.
    """

    _doc_link_module = "daskgmm"

    @property
    def _doc_link_template(self) -> str:
        url = dask.config.get("daskgmm.documentation-url") or ""
        page = "/api/generated/daskgmm.{estimator_name}.html"
        return f"{url.rstrip('/')}{page}" if url else ""

    def _repr_mimebundle_(self, **which: Any) -> dict[str, Any]:
        """What notebooks show: scikit-learn's page, and what was fitted."""
        bundle: dict[str, Any] = super()._repr_mimebundle_(**which)  # type: ignore[misc]
        if "text/html" in bundle:
            bundle["text/html"] += self._fitted_html()
        return bundle

    def _validate_params(self) -> None:
        """Check the parameters as scikit-learn does; its frames say nothing more."""
        try:
            super()._validate_params()  # type: ignore[misc]
        except ValueError as error:
            raise ParameterError(str(error)) from None

    def _repr_html_inner(self) -> str:
        """The same, for who asks for `_repr_html_` alone."""
        page: str = super()._repr_html_inner()  # type: ignore[misc]
        return page + self._fitted_html()

    def _fitted_html(self) -> str:
        """What was fitted, in HTML; nothing before that."""
        return ""
