"""The process that runs networks and times them. No torch, unless the runtime is torch itself."""
