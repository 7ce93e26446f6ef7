"""SDK for camera gateways and operators."""
