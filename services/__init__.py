"""The model services: thin frames around engines that other people keep."""
