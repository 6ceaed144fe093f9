"""Embedding service: sentence-transformers models behind OpenAI's embeddings API, plus reranking and scoring."""
