"""Configuration: settings from the environment, strict YAML, the model catalogue."""
