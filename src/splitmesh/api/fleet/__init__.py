"""Generated from protos/ by tools/generate_stubs.py; never edited."""
