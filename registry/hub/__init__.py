"""The Hub that models are mirrored from: client settings, error messages, file selection."""
