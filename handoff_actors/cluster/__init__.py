"""What crosses between processes, and how: payloads, types of the script, errors."""
