"""Translate chatui.env into the settings file of the current Chat UI, before Chat UI starts."""
