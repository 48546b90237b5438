"""The eNTK engine: from a model and inputs to a `Kernel`."""
