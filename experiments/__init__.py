"""Thin programs around the library: flags, settings, device, messages."""

from experiments.allocation import restart_with_settings

# Before anything that takes long to import.
restart_with_settings()
