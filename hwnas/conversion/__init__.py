"""Networks from one notation to another: torch modules to ONNX files, ONNX files to torch modules."""
