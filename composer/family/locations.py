"""locations: where on this machine a checkpoint is."""

from pathlib import Path

import huggingface_hub

from layerloom.composer.errors import ComposeError

from .entries import Location

FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def directory(root: Path, location: Location) -> Path:
    """Where a checkpoint is on this machine, downloaded first if it comes from the hub. Raises ComposeError."""
    if location.path is not None:
        return root / Path(location.path).expanduser()
    try:
        return Path(huggingface_hub.snapshot_download(location.hub, revision=location.revision, allow_patterns=FILES))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ComposeError(f"{location.hub} at {location.revision}: cannot be downloaded: {reason}") from error
