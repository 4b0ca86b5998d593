"""Live agents: one process, many turns."""
