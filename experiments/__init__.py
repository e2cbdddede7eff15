"""Thin programs around the library: flags, settings, device, messages."""

from experiments.large_pages import restart_with_large_pages

# Before anything that takes long to import.
restart_with_large_pages()
