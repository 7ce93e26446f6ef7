"""The tail: runs the segment behind a cut for many heads at once."""
