"""Datasets as the files of other tools: ImageFolder, CSV, COCO, YOLO. Knows no store and no network."""

from splitmesh.datasets.files.found import FORMS, Form
from splitmesh.datasets.files.reading import Options, PictureItem, Read, read
from splitmesh.datasets.files.writing import Written, write

__all__ = ["FORMS", "Form", "Options", "PictureItem", "Read", "Written", "read", "write"]
