"""Answers of independent implementations, recorded, and the scripts that record them."""
