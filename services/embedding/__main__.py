"""`python -m services.embedding`: serve until SIGINT or SIGTERM. Settings come from the environment."""

from kit.web.server import refuse_arguments, run
from services.embedding.app import create_app
from services.embedding.settings import EmbeddingSettings

if __name__ == "__main__":
    refuse_arguments("services.embedding")
    run("embedding", EmbeddingSettings, create_app)
