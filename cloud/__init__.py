"""Services of this tier; each folder is one process, run as ``python -m`` from the checkout or an image."""
