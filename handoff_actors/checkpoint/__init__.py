"""Leaving a run and coming back: finished results in a file, known again by content."""
