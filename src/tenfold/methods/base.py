"""The contract of a method, and the registry that finds every method in this folder."""
