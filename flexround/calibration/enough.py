"""Number of calibration samples that learning needs. Nothing heavy is imported here."""

from __future__ import annotations


def check_enough(samples: int, batch_size: int, held_out: int = 0) -> None:
    """Check that so many samples hold a mini-batch besides those that are held out.

    Raises:
        ValueError: when they do not.
    """
    if samples - held_out >= batch_size:
        return
    if held_out:
        raise ValueError(
            f"recon.held_out={held_out} of num_samples={samples} leaves fewer than "
            f"recon.batch_size={batch_size}; raise num_samples, or lower one of the others"
        )
    raise ValueError(
        f"num_samples={samples} is smaller than recon.batch_size={batch_size}; "
        "raise num_samples or lower recon.batch_size"
    )
