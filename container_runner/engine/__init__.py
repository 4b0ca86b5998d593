"""docker or podman, and the containers there."""
