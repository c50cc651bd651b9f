"""Measurements on the machine at hand, and pictures of them."""
