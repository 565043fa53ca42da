"""Adapters and what is done to them: compared, merged, stepped. Torch and numbers, no network, no files."""

from __future__ import annotations

from fedmerge.adapters.adapter import Adapter, Lora

__all__ = ["Adapter", "Lora"]
