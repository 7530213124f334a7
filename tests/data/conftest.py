"""Leaves Detectron2's catalogs as they were."""

from collections.abc import Iterator

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def restore_catalogs() -> Iterator[None]:
    saved = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, data in saved:
        catalog.data = data
