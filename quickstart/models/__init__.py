"""The quickstart's models: from the Hugging Face Hub or from packages, published to the registry."""
