"""Speech to text over HTTP: faster-whisper behind OpenAI's audio routes."""
