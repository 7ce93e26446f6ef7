"""`python -m services.partitioner`."""

from services.partitioner.app import ABOUT, build
from services.partitioner.config import PartitionerSettings
from splitmesh.kernel.lifecycle import main

if __name__ == "__main__":
    main("partitioner", PartitionerSettings, build, ABOUT)
