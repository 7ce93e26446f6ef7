"""The registry: model versions, their artefacts and the aliases that point at them."""
