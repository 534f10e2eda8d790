"""Entry file for ``DiffusionPipeline.from_pretrained(..., custom_pipeline=...)``: imports softcft for the caller."""

from softcft import DiffusionDSCMPipeline

__all__ = ["DiffusionDSCMPipeline"]
