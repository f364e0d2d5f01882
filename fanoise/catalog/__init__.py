"""Catalogues: tables, folders, PDF documents, tar shards and datasets, read as a stream of `Item` records.

Images are named here, never opened: a damaged one is the reader's to reject, not a reason to lose the catalogue.
"""

from fanoise.catalog.item import ImageBytes, Item, image_name
from fanoise.catalog.pdf import PdfPage
from fanoise.catalog.read import catalog_root, count_rows, read_catalog
from fanoise.catalog.tables import TABLE_SUFFIXES, read_rows
from fanoise.catalog.urls import RemoteImage
from fanoise.catalog.webdataset import TarMember
from fanoise.images import IMAGE_SUFFIXES

__all__ = [
    "IMAGE_SUFFIXES",
    "TABLE_SUFFIXES",
    "ImageBytes",
    "Item",
    "PdfPage",
    "RemoteImage",
    "TarMember",
    "catalog_root",
    "count_rows",
    "image_name",
    "read_catalog",
    "read_rows",
]
