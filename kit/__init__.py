"""The frame that the gateway, the registry and every model service stand on."""

__version__ = "0.1.0"
