"""Leaves Detectron2's catalogs as they were."""

import pytest


@pytest.fixture(autouse=True)
def _catalogs(restore_catalogs: None) -> None:
    pass
