"""The compiled kernel: every row of a block against every component, once.

It knows nothing of covariance shapes. All but the last form measure deviations from a
component's own mean, so nothing cancels. The caller chooses one of four:

- *dense*: each component has a factor of its own. The squared distance of a row is the
  sum of squares of the factor's product with the deviation e, and the scatter is the
  lower triangle of Σ r e eᵀ: half the arithmetic of two matrix products.
- *diagonal*: the same where factors are diagonal.
- *pooled*: all components of a run share one dense factor. Rows are whitened once,
  about the run's origin, and the distances are diagonal. The scatter of a row y about
  all means m is that of its residual v = y - Σ r m and of the means about their average
  (the law of total variance). The latter is Σ r_k r_l (m_k - m_l)(m_k - m_l)ᵀ over
  k < l: so the products r_k r_l are added up, and nothing cancels here either.
- *natural*: where factors are diagonal, too, distances and sums are products of
  matrices with y and y², about the run's origin; with y and ‖y‖² where a component has
  one precision for all features. Terms cancel, so it is for components that lie no more
  than a hundred standard deviations from there; a few others may stand apart, and are
  diagonal.

Where few rows of a tile have a part in a component, as with many features, those are
added up one by one, or gathered; and of the dense form, log joints that cannot matter
are not computed at all. With up to three features, all of a component stays in
registers.

Rows go through in tiles that stay in the cache, stored as *lines*: features × rows, so
that a vector holds one feature of several rows. Products are made in register tiles of
four rows by `COLUMNS` vectors, where a number is loaded once for many multiplications.
All of it is compiled for float64, and for float32 once somebody asks for that: a vector
has twice as many numbers then. Sums over more than a tile are float64 in either case.
One call holds the GIL at no time.
"""
