"""What is known of models and datasets: the port, and stores behind it."""
