"""What may be configured, and by whom."""
