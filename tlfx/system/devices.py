"""The device that a command or an example runs on."""

from __future__ import annotations

import torch

from tlfx.errors import InputError

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """The device of this name, or for "auto" the accelerator of this machine if it has one, else the CPU.

    A name without an index keeps none, so that each process of a distributed run can choose its own. Nothing is
    allocated on the device. Raises InputError if this machine does not have the device.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    count = torch.accelerator.device_count() if accelerator is not None and device.type == accelerator.type else 0
    if device.type != "cpu" and (device.index or 0) >= count:
        held = "cpu" if accelerator is None else f"cpu and {accelerator.type}"
        raise InputError(f"--device {name} is not available; this machine has {held}")
    return device
