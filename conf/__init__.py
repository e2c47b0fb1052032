"""The configuration tree, shipped with the package. Files name things by `_target_` and import nothing."""
