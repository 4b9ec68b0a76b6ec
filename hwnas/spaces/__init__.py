"""Search spaces: what architectures there are, as codes, graphs, torch networks and ONNX models."""
