"""A complete small inspection task: rendered solder joints, a network made to be split, and its training.

Everything here uses splitmesh as a customer would; the package itself never imports this folder.
"""
