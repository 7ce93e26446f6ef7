"""``python -m services.fleet``."""

from services.fleet.app import ABOUT, build
from services.fleet.config import FleetSettings
from splitmesh.kernel.lifecycle import main

main("fleet", FleetSettings, build, ABOUT)
