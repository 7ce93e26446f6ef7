"""What this head was told to serve: assignments on disk, how far each version is, and the service that tells and is told."""
