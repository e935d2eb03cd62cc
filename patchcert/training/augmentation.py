"""Moves, mirrors and recolours training images at random, each image its own way."""

import torch

from patchcert.training.config import TrainingConfig


def augment(images_BCHW: torch.Tensor, config: TrainingConfig, generator: torch.Generator) -> torch.Tensor:
    """Moves, mirrors and changes images as ``config.augmentation`` says.

    Args:
        images_BCHW: uint8 (B, C, H, W); not written to.
        config: kind of augmentation, its share of the images and largest shift.
        generator: on the CPU; draws are the same on every device.

    Returns:
        uint8 (B, C, H, W); pixels moved in from outside are 0. Only ``trivial_augment`` goes through the images one
        by one, 0.11 ms of a core for 32x32x3.
    """
    if config.augmentation == "none":
        return images_BCHW
    batch, _, height, width = images_BCHW.shape
    device, reach = images_BCHW.device, config.shift_pixels
    shifts = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator)
    rows = torch.arange(height) + shifts[0]
    columns = torch.arange(width) + shifts[1]
    if config.augmentation != "shift":
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images_BCHW, (reach,) * 4)
    which = torch.arange(batch, device=device)[:, None, None]
    rows, columns = rows.to(device)[:, :, None], columns.to(device)[:, None, :]
    # Advanced indices around a slice put the channels last.
    moved_BCHW = padded[which, :, rows, columns].permute(0, 3, 1, 2)
    if config.augmentation != "trivial_augment":
        return moved_BCHW
    return _trivially_augmented(moved_BCHW, config.augmentation_share, generator)


def _trivially_augmented(images_BCHW: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    from torchvision.transforms import v2

    operation = v2.TrivialAugmentWide()
    changed_B = (torch.rand(len(images_BCHW), generator=generator) < share).tolist()
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    # The operation draws from torch's own generator for the CPU, whose state belongs to the caller.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.stack(
            [
                operation(image_CHW) if changed else image_CHW
                for image_CHW, changed in zip(images_BCHW, changed_B, strict=True)
            ]
        )
