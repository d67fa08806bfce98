"""Where weights and text come from: package registry, hub, URL or file, directory, bare shapes.

Everything that has to be fetched or converted is fetched once, checked, and kept in the cache.
"""

from bitgate.sources.cache import cache_directory, once
from bitgate.sources.devices import pick_device, serving_dtype
from bitgate.sources.errors import HubUnavailable, SourceError
from bitgate.sources.memory import available_memory, check_fits
from bitgate.sources.models import LoadedModel, fetch_model, fingerprint, load_model
from bitgate.sources.progress import Progress, Report, reporting_to, set_progress, track
from bitgate.sources.text import load_documents
from bitgate.sources.windows import Windows, windows

__all__ = [
    "HubUnavailable",
    "LoadedModel",
    "Progress",
    "Report",
    "SourceError",
    "Windows",
    "available_memory",
    "cache_directory",
    "check_fits",
    "fetch_model",
    "fingerprint",
    "load_documents",
    "load_model",
    "once",
    "pick_device",
    "reporting_to",
    "serving_dtype",
    "set_progress",
    "track",
    "windows",
]
