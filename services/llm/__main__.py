"""`python -m services.llm`: serve until SIGINT or SIGTERM. Settings come from the environment."""

from kit.server import run
from services.llm.app import create
from services.llm.settings import LlmSettings

if __name__ == "__main__":
    run("llm", LlmSettings, create)
