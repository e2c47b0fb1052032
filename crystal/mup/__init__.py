"""Maximal-update parametrization: widths derived once with the `mup` package, then plain floats by parameter name."""
