from .folder import models_folder
from .index import Entry
from .registry import (
    add,
    default_name,
    entries,
    load,
    model_names,
    reference,
    remove,
    resolve,
    verify,
)
from .remote import FetchProgress, fetch, fetch_steps, remote_entries
from .web import Limits

__all__ = [
    "Entry",
    "FetchProgress",
    "Limits",
    "add",
    "default_name",
    "entries",
    "fetch",
    "fetch_steps",
    "load",
    "model_names",
    "models_folder",
    "reference",
    "remote_entries",
    "remove",
    "resolve",
    "verify",
]
