"""uint8 images on the CPU in, batches of one size on a device out, each sent while the one before is computed on."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F


def device_batches(images_NCHW: torch.Tensor, size: int, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields the first row and the rows of each batch; the last batch is filled up with zeros.

    To a GPU, images go from pinned memory on a stream of their own, one batch ahead of the computation.

    Args:
        images_NCHW: on the CPU.
        size: rows of a batch.
        device: where batches go.
    """
    starts = range(0, len(images_NCHW), size)
    if device.type != "cuda":
        for first in starts:
            yield first, _filled(images_NCHW[first : first + size], size)
        return
    # Two pinned buffers: what is being sent, and what is filled meanwhile.
    buffers = [torch.empty_like(images_NCHW[:size], pin_memory=True) for _ in range(min(2, len(starts)))]
    sent: list[torch.cuda.Event | None] = [None, None]
    stream = torch.cuda.Stream(device)

    def send(number: int) -> torch.Tensor:
        rows, slot = images_NCHW[starts[number] : starts[number] + size], number % 2
        event = sent[slot]
        if event is not None:
            event.synchronize()
        buffers[slot][: len(rows)].copy_(rows)
        with torch.cuda.stream(stream):
            batch = _filled(buffers[slot][: len(rows)].to(device, non_blocking=True), size)
            sent[slot] = stream.record_event()
        return batch

    ahead = send(0) if len(starts) else images_NCHW
    for number, first in enumerate(starts):
        batch, event = ahead, sent[number % 2]
        current = torch.cuda.current_stream(device)
        if event is not None:
            current.wait_event(event)
        batch.record_stream(current)
        if number + 1 < len(starts):
            ahead = send(number + 1)
        yield first, batch


def _filled(rows_BCHW: torch.Tensor, size: int) -> torch.Tensor:
    missing = size - len(rows_BCHW)
    return F.pad(rows_BCHW, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else rows_BCHW
