"""``python -m services.registry``."""

from services.registry.app import build
from services.registry.config import RegistrySettings
from splitmesh.kernel.lifecycle import main

main("registry", RegistrySettings, build, "Keeps model versions and tells watchers when an alias moves.")
