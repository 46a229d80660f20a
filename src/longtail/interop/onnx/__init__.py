"""Models as ONNX files: written from a model, joined, quantised, and run without PyTorch."""
