"""What does the work of a task; one module for each kind."""
