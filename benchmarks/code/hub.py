"""One file of MBPP from the Hugging Face hub, at a pinned revision: the local cache's, or the hub's where it answers.

The surprise: the hub's own client tries a host that does not answer for half a minute, so it is asked only after one brief knock.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

MBPP = "google-research-datasets/mbpp"
REVISION = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
TIMEOUT_S = 5.0


def mbpp_file(split: str) -> Path:
    """The parquet file of a split. Raises ImportError, OSError or ValueError where it cannot be had."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = f"full/{split}-00000-of-00001.parquet"
    fetch = partial(hf_hub_download, MBPP, name, repo_type="dataset", revision=REVISION)
    try:
        return Path(fetch(local_files_only=True))
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise
    knock(hf_hub_url(MBPP, name, repo_type="dataset", revision=REVISION))
    return Path(fetch(etag_timeout=TIMEOUT_S))


def knock(url: str) -> None:
    """Raise OSError where nobody answers at `url` within seconds."""
    urlopen(Request(url, method="HEAD"), timeout=TIMEOUT_S).close()
