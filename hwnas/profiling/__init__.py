"""Measured latency, memory and energy: a torch-free worker process runs networks, the host decides what it means.

The worker (`hwnas.profiling.worker`) loads ONNX models with one runtime and times single visits. Everything that needs
judgement lives on the host and is the same for every runtime: order, warm-up and stopping (`schedule`), estimates and
intervals (`statistics`), statuses and retries (`bench`), caches, locks and calibration.
"""
