"""`python -m services.transcription`: serve until SIGINT or SIGTERM. Settings come from the environment."""

from kit.web.server import refuse_arguments, run
from services.transcription.app import create_app
from services.transcription.settings import TranscriptionSettings

if __name__ == "__main__":
    refuse_arguments("services.transcription")
    run("transcription", TranscriptionSettings, create_app)
