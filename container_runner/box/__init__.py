"""What a run's container is, as values: nothing here starts anything."""
