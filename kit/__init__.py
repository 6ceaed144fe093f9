"""The library shared by the gateway, the registry and every model service."""
