"""Engine on CUDA GPUs: vLLM's server in this process."""
