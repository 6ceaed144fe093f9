"""Inference engines for embedding models and cross-encoders: PyTorch and OpenVINO."""
