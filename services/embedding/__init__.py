"""Embeddings, reranking and scoring over HTTP: sentence-transformers behind OpenAI's routes."""
