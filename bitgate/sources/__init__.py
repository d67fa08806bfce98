"""Where weights and text come from: package registry, hub, URL or file, directory, bare shapes.

Everything that has to be fetched or converted is fetched once, checked, and kept in the cache.
"""

from bitgate.sources.cache import cache_directory, once
from bitgate.sources.declared import declared
from bitgate.sources.devices import pick_device, serving_dtype
from bitgate.sources.errors import DoesNotFit, HubUnavailable, SourceError
from bitgate.sources.labelled import EncodedItems, LabelledItems, Part, load_items, shared_item
from bitgate.sources.memory import available_memory, check_fits
from bitgate.sources.models import LoadedModel, fetch_config, fetch_model, fingerprint, load_model
from bitgate.sources.overlap import shared_run
from bitgate.sources.progress import Progress, Report, reporting_to, set_progress, track
from bitgate.sources.prompts import Prompts, load_prompts
from bitgate.sources.suited import refuse_unsuited
from bitgate.sources.tasks import Questions, load_questions
from bitgate.sources.text import load_documents
from bitgate.sources.windows import TooShortError, Windows, refuse_too_few, windows

__all__ = [
    "DoesNotFit",
    "EncodedItems",
    "HubUnavailable",
    "LabelledItems",
    "LoadedModel",
    "Part",
    "Progress",
    "Prompts",
    "Questions",
    "Report",
    "SourceError",
    "TooShortError",
    "Windows",
    "available_memory",
    "cache_directory",
    "check_fits",
    "declared",
    "fetch_config",
    "fetch_model",
    "fingerprint",
    "load_documents",
    "load_items",
    "load_model",
    "load_prompts",
    "load_questions",
    "once",
    "pick_device",
    "refuse_too_few",
    "refuse_unsuited",
    "reporting_to",
    "serving_dtype",
    "set_progress",
    "shared_item",
    "shared_run",
    "track",
    "windows",
]
