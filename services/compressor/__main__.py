"""`python -m services.compressor`."""

from services.compressor.app import ABOUT, build
from services.compressor.config import CompressorSettings
from splitmesh.kernel.lifecycle import main

if __name__ == "__main__":
    main("compressor", CompressorSettings, build, ABOUT)
