"""The frame that the gateway, the registry and every model service stand on."""
