"""Signed offline bundles: layout, manifest, export, import."""
