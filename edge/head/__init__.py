"""The head: answers camera frames beside the line, and asks a tail when its exit is not sure."""
