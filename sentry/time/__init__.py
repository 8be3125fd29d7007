"""Clocks and timers, sans-IO."""
