"""Text and vision service: vLLM on CUDA GPUs, transformers elsewhere, behind OpenAI's API."""
