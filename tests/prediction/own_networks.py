"""Networks as users write them: some break what certificates or checkpoints assume, some only look as if they did."""

import torch
import torch.nn.functional as F
from torch import nn


class Base(nn.Module):
    """A small correct network, to be spoiled."""

    def __init__(self, num_input_channels, num_classes, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv = nn.Conv2d(num_input_channels, 8, 3, padding=1)
        self.norm = norm(8)
        self.head = nn.Linear(8, num_classes)

    def features(self, views):
        return F.relu(self.norm(self.conv(views))).mean(dim=(2, 3))

    def forward(self, views):
        return self.head(self.features(views))


def network(forward=None, **settings):
    """A function that makes networks, with another forward."""

    def make(num_input_channels, view_size, num_classes):
        built = Base(num_input_channels, num_classes, **settings)
        return built if forward is None else Changed(built, forward)

    return make


class Changed(nn.Module):
    def __init__(self, base, change):
        super().__init__()
        self.base, self.change = base, change
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("direction", torch.linspace(-1, 1, base.head.out_features), persistent=False)
        self.seen = None

    def forward(self, views):
        return self.change(self, views)


def eval_only(change):
    """A change that acts in evaluation mode alone."""
    return lambda self, views: change(self, views) if not self.training else self.base(views)


def train_only(change):
    return lambda self, views: change(self, views) if self.training else self.base(views)


# Scores depend on more than the view.
batch_statistics = network(norm=lambda channels: nn.BatchNorm2d(channels, track_running_stats=False))
small_leak = network(eval_only(lambda self, x: self.base(x) + 1e-4 * self.base(x).mean(0)))
batch_softmax = network(eval_only(lambda self, x: self.base(x).softmax(0)))
place = network(
    eval_only(lambda self, x: self.base(x) + 0.1 * torch.arange(len(x), device=x.device)[:, None] * self.direction)
)
batch_size = network(eval_only(lambda self, x: self.base(x) + len(x) * self.direction))
large_batches = network(eval_only(lambda self, x: self.base(x - x.mean(0)) if len(x) > 20 else self.base(x)))
gradients_matter = network(
    eval_only(lambda self, x: self.base(x) + (self.direction if torch.is_grad_enabled() else 0.0))
)


class ZeroStart(Base):
    """Depends on the batch behind a head that starts at zero."""

    def __init__(self, num_input_channels, num_classes):
        super().__init__(num_input_channels, num_classes, norm=lambda c: nn.BatchNorm2d(c, track_running_stats=False))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def zero_start(num_input_channels, view_size, num_classes):
    return ZeroStart(num_input_channels, num_classes)


# Scores do not repeat, or state moves.
dropout_left_on = network(eval_only(lambda self, x: self.base.head(F.dropout(self.base.features(x), 0.5))))
rare_dropout = network(eval_only(lambda self, x: self.base.head(F.dropout(self.base.features(x), 1e-4))))
noise = network(eval_only(lambda self, x: self.base(x) + 1e-3 * torch.randn(1)))


def _counts(self, views):
    self.count += 1
    return self.base(views) + self.count * self.direction


def _counts_without_effect_yet(self, views):
    self.count += 1
    return self.base(views) if self.count < 1000 else -self.base(views)


def _remembers(self, views):
    """State outside of buffers: what was scored before."""
    scores = self.base(views)
    before = scores.mean(0) if self.seen is None else self.seen
    self.seen = scores.detach().mean(0)
    return scores + 0.1 * before


counting_buffer = network(eval_only(_counts))
sleeping_buffer = network(eval_only(_counts_without_effect_yet))
memory = network(eval_only(_remembers))

# Cannot be trained.
tuple_in_training = network(train_only(lambda self, x: (self.base(x), self.base(x))))
dict_in_training = network(train_only(lambda self, x: {"logits": self.base(x)}))
other_shape_in_training = network(train_only(lambda self, x: self.base.features(x)))
error_in_training = network(train_only(lambda self, x: self.no_such_layer(x)))
nan_in_training = network(train_only(lambda self, x: self.base(x) * float("nan")))
detached = network(train_only(lambda self, x: self.base(x).detach()))


def frozen(num_input_channels, view_size, num_classes):
    return Base(num_input_channels, num_classes).requires_grad_(False)


class Colours(nn.Module):
    """Has no parameters: classes are brightnesses."""

    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("levels", torch.linspace(0, 1, num_classes))

    def forward(self, views):
        return -((views.mean(dim=(1, 2, 3))[:, None] - self.levels) ** 2)


def without_parameters(num_input_channels, view_size, num_classes):
    return Colours(num_classes)


# Cannot be saved and loaded.
class ExtraState(Base):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}


class SparseBuffer(Base):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("graph", torch.eye(4).to_sparse())


class RandomProjection(Base):
    """A random buffer that the state leaves out: built anew, it is another one."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("projection", torch.randn(8, 8), persistent=False)

    def features(self, views):
        return super().features(views) @ self.projection


class OutsideOfState(Base):
    """Learns something in training that is no buffer."""

    mean = 0.0

    def features(self, views):
        features = super().features(views)
        if self.training:
            self.mean = features.detach().mean(0) + 1
        return features - self.mean


class RefusesItsState(Base):
    def _load_from_state_dict(self, *arguments):
        raise ValueError("this version cannot be loaded")


def extra_state(num_input_channels, view_size, num_classes):
    return ExtraState(num_input_channels, num_classes)


def sparse_buffer(num_input_channels, view_size, num_classes):
    return SparseBuffer(num_input_channels, num_classes)


def random_projection(num_input_channels, view_size, num_classes):
    return RandomProjection(num_input_channels, num_classes)


def outside_of_state(num_input_channels, view_size, num_classes):
    return OutsideOfState(num_input_channels, num_classes)


def refuses_its_state(num_input_channels, view_size, num_classes):
    return RefusesItsState(num_input_channels, num_classes)


not_finite = network(eval_only(lambda self, x: self.base(x) / x.amax(dim=(1, 2, 3))[:, None].clamp(max=0.5).floor()))

# Correct, whatever they look like.
plain = network()
group_norm = network(norm=lambda channels: nn.GroupNorm(2, channels))
float32_inside = network(lambda self, x: self.base.head(F.normalize(self.base.features(x).float(), dim=1).to(x.dtype)))
float32_only = network(lambda self, x: self.base.head(self.base.features(x.float()).float()))
bfloat16_inside = network(lambda self, x: self.base.head(self.base.features(x).to(torch.bfloat16).to(x.dtype)))
large_scores = network(lambda self, x: 1e6 * self.base(x))
tiny_differences = network(lambda self, x: 1e-6 * self.base(x) + 5.0 * self.direction)


def _seeds_itself(self, views):
    generator = torch.Generator(device=views.device).manual_seed(7)
    return self.base(views + 0.1 * torch.rand(1, generator=generator).to(views.dtype))


def _seeds_all(self, views):
    torch.manual_seed(7)
    return self.base(views + 0.1 * torch.rand(1).to(views.dtype))


def _fills_its_cache(self, views):
    if self.seen is None:
        self.seen = torch.ones(())
    return self.base(views) + self.seen.to(views.dtype)


own_generator = network(_seeds_itself)
seeds_all = network(eval_only(_seeds_all))
cache = network(_fills_its_cache)


def _tied(num_input_channels, view_size, num_classes):
    built = Base(num_input_channels, num_classes)
    built.extra = nn.Linear(8, num_classes)
    built.extra.weight = built.head.weight
    return built


tied = _tied


class NotCopyable(Base):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


def not_copyable(num_input_channels, view_size, num_classes):
    return NotCopyable(num_input_channels, num_classes)


def __getattr__(name):
    """Networks of timm by name: ``timm_resnet10t``."""
    if not name.startswith("timm_"):
        raise AttributeError(name)
    import timm

    def make(num_input_channels, view_size, num_classes):
        return timm.create_model(name.removeprefix("timm_"), in_chans=num_input_channels, num_classes=num_classes)

    return make
