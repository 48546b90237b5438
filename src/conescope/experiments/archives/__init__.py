"""Archives of run folders: self-contained files that other people can read and verify."""
