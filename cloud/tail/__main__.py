from cloud.tail.app import build
from cloud.tail.config import TailSettings
from splitmesh.kernel.lifecycle import main

main("tail", TailSettings, build, "Runs the tail of split models on features that heads send.")
