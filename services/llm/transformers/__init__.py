"""Engine without CUDA: transformers' serving handlers with our sampling and cancellation."""
