from edge.head.app import build
from edge.head.config import HeadSettings
from splitmesh.kernel.lifecycle import main

main("head", HeadSettings, build, "Answers camera frames at the edge; sends the features of hard ones to a tail.")
