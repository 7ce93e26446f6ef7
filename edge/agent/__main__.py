from edge.agent.app import build
from edge.agent.config import AgentSettings
from splitmesh.kernel.lifecycle import main

main("agent", AgentSettings, build, "Keeps one stream to the fleet open and does on this host what the fleet asks for.")
