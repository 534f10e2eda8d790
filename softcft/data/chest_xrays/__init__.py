"""Public sets of chest X-rays: their tables filtered and split by rules with a source, their pictures at one size.

Each source is a module with a function ``select``, which reads tables and no pixel and returns a
:class:`~softcft.data.chest_xrays.common.Selection`. What follows is the same for all of them:
:mod:`softcft.data.chest_xrays.prepared`. The recipe is ``prepare_chest_xrays.py``.
"""

from collections.abc import Callable

from softcft.data.chest_xrays import chexpert, mimic_cxr, nih, padchest
from softcft.data.chest_xrays.common import Selection

__all__ = ["SOURCES"]

SOURCES: dict[str, Callable[..., Selection]] = {
    "mimic_cxr": mimic_cxr.select,
    "nih": nih.select,
    "chexpert": chexpert.select,
    "padchest": padchest.select,
}
"""The sources by the name that ``--source`` and ``dataset_name`` have for them."""
