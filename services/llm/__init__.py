"""Text and vision models behind OpenAI's routes: vLLM where there is CUDA, transformers elsewhere."""
