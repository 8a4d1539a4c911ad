"""Who trains: an adapter per engine, and the entry modules that run in the trainer's process."""
