"""Complete examples; never installed with the package."""
