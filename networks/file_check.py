"""Whether the text encoders that a LoRA file has modules for are those that a network is for."""

from __future__ import annotations

from collections.abc import Sequence

from library.errors import CheckpointError


def refuse_other_encoders(
    names: Sequence[str], what: str, prefixes: tuple[str, ...], *, is_trained: bool, advice: str | None = None
) -> None:
    """Raise CheckpointError if a file has modules for other text encoders than the network.

    Args:
        names: The modules of text encoders in the file.
        what: The option and the file, for messages.
        prefixes: How the names of the network's begin, for each text encoder.
        is_trained: Whether the network has modules for text encoders.
        advice: What to do about other text encoders, besides --dim_from_weights.
    """
    if not is_trained and names:
        raise CheckpointError(
            f"{what} has modules for text encoders, which --network_train_unet_only leaves out. Do not give that "
            "option, or use --dim_from_weights too."
        )
    if is_trained and not names:
        raise CheckpointError(
            f"{what} has no modules for text encoders, which are trained too. Add --network_train_unet_only, or "
            "--dim_from_weights to train what the file has."
        )
    lacking = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    unknown = [name for name in names if not name.startswith(prefixes)]
    if is_trained and (lacking or unknown):
        difference = f"has no {lacking[0]} modules" if lacking else f"has {unknown[0]}"
        way_out = f"{advice}, or use" if advice else "Use"
        raise CheckpointError(
            f"{what} {difference}: it was trained with other text encoders. {way_out} --dim_from_weights."
        )
