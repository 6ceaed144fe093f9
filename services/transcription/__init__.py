"""Transcription service: faster-whisper behind OpenAI's audio API."""
