"""The program that writes the tables and pictures of README.md and docs/: ``python -m tools.pages``."""
