"""uint8 images in, randomly moved and mirrored images out, each its own way, without a loop over images."""

import torch

from patchcert.training.config import TrainingConfig


def augment(images_BCHW: torch.Tensor, config: TrainingConfig, generator: torch.Generator) -> torch.Tensor:
    """Moves and mirrors images as ``config.augmentation`` says.

    Args:
        images_BCHW: uint8 (B, C, H, W); not written to.
        config: kind of augmentation and largest shift.
        generator: on the CPU; draws are the same on every device.

    Returns:
        uint8 (B, C, H, W); pixels moved in from outside are 0.
    """
    if config.augmentation == "none":
        return images_BCHW
    batch, _, height, width = images_BCHW.shape
    device, reach = images_BCHW.device, config.shift_pixels
    shifts = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator)
    rows = torch.arange(height) + shifts[0]
    columns = torch.arange(width) + shifts[1]
    if config.augmentation == "shift_flip":
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images_BCHW, (reach,) * 4)
    which = torch.arange(batch, device=device)[:, None, None]
    rows, columns = rows.to(device)[:, :, None], columns.to(device)[:, None, :]
    # Advanced indices around a slice put the channels last.
    return padded[which, :, rows, columns].permute(0, 3, 1, 2)
