"""The training loop of one process, alone or among several that train together."""

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from patchcert.errors import TrainingError
from patchcert.models.classifier import BaseClassifier
from patchcert.training.augmentation import augment
from patchcert.training.config import TrainingConfig
from patchcert.training.feeding import Batch, Feed
from patchcert.training.objective import Objective
from patchcert.training.optimizers import make_optimizer, set_rate
from patchcert.training.schedule import learning_rate_at

# Looking at the loss waits for the device; once in a while is soon enough to stop a diverged run.
_STEPS_BETWEEN_CHECKS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochFigures:
    """What one epoch of one worker measured.

    Attributes:
        loss: mean of the objective over the steps of the epoch.
        view_accuracy: share of training views classified correctly, in [0, 1]; of several members, their mean.
        images_per_second: images this worker consumed per second.
        learning_rate: rate of the last step.
    """

    loss: float
    view_accuracy: float
    images_per_second: float
    learning_rate: float


class Trainer:
    """Trains a base classifier on random views of images, or on all of them.

    Every random choice (images, views, augmentation) is drawn from generators made of (seed, epoch, rank), so a run
    that is resumed at an epoch continues as if it had never stopped.
    """

    def __init__(
        self,
        classifier: BaseClassifier,
        config: TrainingConfig,
        feed: Feed,
        device: torch.device,
        *,
        rank: int = 0,
        num_workers: int = 1,
        parallel: nn.Module | None = None,
    ) -> None:
        """Prepares optimizer and schedule.

        Args:
            classifier: on ``device``.
            config: the settings.
            feed: batches of this worker.
            device: where to compute.
            rank: this worker's number.
            num_workers: processes that train together, each with a feed of its own rank.
            parallel: the classifier wrapped for data-parallel training, when there are several workers.
        """
        self.classifier, self.config, self.feed, self.device, self.rank = classifier, config, feed, device, rank
        self._forward = parallel if parallel is not None else classifier
        self.optimizer = make_optimizer(classifier, config)
        self.objective = Objective(config, classifier.views, device)
        self._views_per_image = config.views_per_image or classifier.views.num_views
        self.next_epoch = 0
        self._num_workers = num_workers
        self._workers_of_epochs: list[list[int]] = []
        self.total_steps = config.epochs * feed.steps_per_epoch

    def run_epoch(self) -> EpochFigures:
        """Trains for one epoch.

        Raises:
            TrainingError: a loss that is not finite; names epoch and step.
        """
        config, epoch = self.config, self.next_epoch
        generator = torch.Generator().manual_seed(_stream_seed(config.seed, epoch, self.rank))
        # Dropout draws from torch's own generator.
        torch.manual_seed(_stream_seed(config.seed + 1, epoch, self.rank))
        self.classifier.train()
        losses: list[torch.Tensor] = []
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        started, num_images, num_views, rate = time.perf_counter(), 0, 0, 0.0
        for step, (images_BCHW, labels_B) in enumerate(self.feed.epoch(epoch)):
            steps_done = epoch * self.feed.steps_per_epoch + step
            rate = learning_rate_at(config, steps_done, self.total_steps)
            loss, num_correct = self._step(images_BCHW, labels_B, generator, rate, steps_done / self.total_steps)
            losses.append(loss)
            correct += num_correct
            num_images += len(images_BCHW)
            num_views += len(images_BCHW) * self._views_per_image * self.classifier.config.members
            if step % _STEPS_BETWEEN_CHECKS == 0:
                self._check(losses, epoch, rate)
        self._check(losses, epoch, rate)
        self.next_epoch = epoch + 1
        if not self._workers_of_epochs or self._workers_of_epochs[-1][0] != self._num_workers:
            self._workers_of_epochs.append([self._num_workers, 0])
        self._workers_of_epochs[-1][1] += 1
        return EpochFigures(
            loss=float(torch.stack(losses).mean()),
            view_accuracy=int(correct) / num_views,
            images_per_second=num_images / (time.perf_counter() - started),
            learning_rate=rate,
        )

    def _step(
        self,
        images_BCHW: torch.Tensor,
        labels_B: torch.Tensor,
        generator: torch.Generator,
        rate: float,
        progress: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config, device = self.config, self.device
        images_BCHW = images_BCHW.to(device, non_blocking=True).contiguous()
        labels_B = labels_B.to(device, non_blocking=True)
        images_BCHW = augment(images_BCHW, config, generator)
        views_Bn = self._views(len(images_BCHW), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits_BnK = self._forward(images_BCHW, views_Bn)
        # Several members score the batch one after the other.
        labels_B = labels_B.repeat(len(logits_BnK) // len(labels_B))
        shared_n = views_Bn[0] if views_Bn is not None and config.view_sampling == "spread" else None
        loss = self.objective(logits_BnK, labels_B, progress, shared_n)
        self.optimizer.zero_grad(set_to_none=True)
        # The loss is a mean over members; each gets the gradient that it would get alone.
        (loss * self.classifier.config.members).backward()
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        return loss.detach(), (logits_BnK.detach().argmax(2) == labels_B[:, None]).sum()

    def _views(self, num_images: int, generator: torch.Generator) -> torch.Tensor | None:
        """Views of one step as the cutter takes them, or None for all of them."""
        config, cutter = self.config, self.classifier.cutter
        if not config.views_per_image:
            return None
        if config.view_sampling == "spread":
            return cutter.spread(config.views_per_image, generator).to(self.device)
        shape = (num_images if config.view_sampling == "image" else 1, config.views_per_image)
        return cutter.draw(shape, generator).to(self.device)

    def _check(self, losses: list[torch.Tensor], epoch: int, rate: float) -> None:
        recent = torch.stack(losses[-_STEPS_BETWEEN_CHECKS - 1 :])
        if not recent.isfinite().all():
            first_bad = len(losses) - len(recent) + int((~recent.isfinite()).nonzero()[0, 0])
            raise TrainingError(
                f"training: the loss is {float(losses[first_bad])} at step {first_bad} of epoch {epoch} "
                f"(learning rate {rate:.3g}).\n"
                "  Lower --training.learning-rate, or use --training.precision float32."
            )

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to continue: weights, optimizer and epoch (plain tensors and numbers)."""
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "next_epoch": self.next_epoch,
            "workers_of_epochs": [list(entry) for entry in self._workers_of_epochs],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned, with any number of workers.

        Nothing in a state belongs to one worker: the batches of an epoch are dealt out anew among as many as there are.
        """
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.next_epoch = int(state["next_epoch"])
        self._workers_of_epochs = workers_of_epochs(state)


def workers_of_epochs(state: dict[str, Any]) -> list[list[int]]:
    """Return how many workers trained how many epochs of a saved state, in order: [[workers, epochs], ...]."""
    # States without it are of versions that went on with one worker only, under the name that a run has now.
    return [list(entry) for entry in state.get("workers_of_epochs", [[1, int(state["next_epoch"])]])]


@torch.inference_mode()
def view_accuracy(
    classifier: BaseClassifier, batches: Iterable[Batch], device: torch.device, *, views_per_image: int, seed: int
) -> float:
    """Share of randomly drawn views that a base classifier gets right.

    Args:
        classifier: on ``device``.
        batches: uint8 (B, C, H, W) images and int64 (B,) labels.
        device: where to compute.
        views_per_image: views drawn from each image.
        seed: of the draw.
    """
    classifier.eval()
    generator = torch.Generator().manual_seed(seed)
    num_correct, num_views = 0, 0
    for images_BCHW, labels_B in batches:
        views_Bn = classifier.cutter.draw((len(images_BCHW), views_per_image), generator)
        predicted_Bn = classifier(images_BCHW.to(device), views_Bn.to(device)).argmax(2).cpu()
        num_correct += int((predicted_Bn == labels_B[:, None]).sum())
        num_views += predicted_Bn.numel()
    return num_correct / num_views


def _stream_seed(seed: int, epoch: int, rank: int) -> int:
    """One well-mixed 63-bit seed for each (seed, epoch, rank)."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
