"""`python -m services.router`."""

from services.router.app import ABOUT, build
from services.router.config import RouterSettings
from splitmesh.kernel.lifecycle import main

if __name__ == "__main__":
    main("router", RouterSettings, build, ABOUT)
