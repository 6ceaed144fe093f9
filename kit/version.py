"""The version of the project; images, OpenAPI documents and bundles carry it."""

__version__ = "0.1.0"
