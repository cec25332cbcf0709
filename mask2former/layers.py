"""Building blocks shared by every network of the project, without any dependency on configuration.

Convolutions with a norm and an activation, frozen batch normalisation, sine position codes, the small MLP of the
heads, and the three layer kinds of a transformer decoder. Attribute names are those of published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .attention import attend
from .group_norm import GroupNorm
from .linear import Linear, convolve, feed_forward, pointwise_conv


class Conv2d(nn.Conv2d):
    """Convolution, then `norm`, then `activation`; either may be None."""

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the arguments of `torch.nn.Conv2d`; give bias=False yourself where a norm follows."""
        super().__init__(*args, **kwargs)
        self.norm = norm  # checkpoint name
        self.activation = activation
        settings = (self.kernel_size, self.stride, self.padding, self.groups)
        self._is_pointwise = settings == ((1, 1), (1, 1), (0, 0), 1)

    def forward(self, x: Tensor) -> Tensor:
        given = (x, self.weight, self.bias)
        x = pointwise_conv(*given) if self._is_pointwise else convolve(self, *given)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine map: four buffers and no parameter."""

    _version = 3

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        # Only there after a conversion from BatchNorm2d, whose checkpoints have this fifth key.
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        # With a gradient the explicit form needs less memory: x itself is not kept for the backward pass.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm and SyncBatchNorm inside `module` and return it (or its replacement)."""
        if isinstance(module, _BatchNorm):
            return cls._from_batchnorm(module)
        for name, child in module.named_children():
            replacement = cls.convert_frozen_batchnorm(child)
            if replacement is not child:
                setattr(module, name, replacement)
        return module

    @classmethod
    def _from_batchnorm(cls, norm: _BatchNorm) -> FrozenBatchNorm2d:
        """Return a frozen copy; an affine map or statistics that `norm` does not have keep their neutral values."""
        frozen = cls(norm.num_features, norm.eps)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            tensor = getattr(norm, name)
            if tensor is not None:
                setattr(frozen, name, tensor.detach().clone())
        return frozen.to((norm.weight if norm.weight is not None else frozen.weight).device).train(norm.training)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        """Fill in what older files lack, drop the counter that this module does not use."""
        version = local_metadata.get("version")
        if version is None or version < 2:  # Caffe2 files hold the affine map only
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        if self.num_batches_tracked is None:
            state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of every pixel of (B, C, H, W)."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.movedim(1, -1)
        return F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: GroupNorm(32, channels),
    "LN": ChannelLayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, num_channels: int) -> nn.Module | None:
    """Build the norm called `norm` for `num_channels` channels; "" and None give None, a callable is called."""
    if not norm:
        return None
    if not isinstance(norm, str):
        return norm(num_channels)
    if norm not in _NORMS:
        raise ValueError(f"NORM must be '' or one of {sorted(_NORMS)}, got {norm!r}; set it in MODEL.*.NORM.")
    if norm == "GN" and num_channels % 32:
        raise ValueError(f"NORM 'GN' has 32 groups and needs a multiple of 32 channels, got {num_channels}.")
    return _NORMS[norm](num_channels)


def c2_xavier_fill(module: nn.Conv2d | nn.Linear) -> None:
    """Initialise a convolution or linear layer as Caffe2's XavierFill does: uniform by fan-in, bias 0."""
    nn.init.kaiming_uniform_(module.weight, a=1)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def c2_msra_fill(module: nn.Conv2d | nn.Linear) -> None:
    """Initialise a convolution or linear layer as Caffe2's MSRAFill does: normal by fan-out, bias 0."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def xavier_fill(module: nn.Conv2d | nn.Linear) -> None:
    """Initialise a convolution or linear layer: Xavier, uniform by fan-in and fan-out, bias 0."""
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class ShapeCache:
    """A few tensors that depend on sizes only; the oldest goes when there are too many.

    It is never copied, pickled or put into a state dict with its owner: copies start empty.
    """

    def __init__(self, max_entries: int = 16) -> None:
        self._max_entries = max_entries
        self._entries: dict[Hashable, Tensor] = {}

    def __reduce__(self) -> tuple:
        return ShapeCache, (self._max_entries,)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of `key`, which `make` computes the first time; treat it as read-only."""
        if torch.compiler.is_compiling():
            return make()  # a compiler folds it into the graph
        tensor = self._entries.get(key)
        if tensor is None:
            with torch.inference_mode(False), torch.no_grad():  # a later training step may use the same entry
                tensor = make()
            while len(self._entries) >= self._max_entries:
                self._entries.pop(next(iter(self._entries)), None)
            self._entries[key] = tensor
        return tensor


def sine_code(positions: Tensor, num_features: int, temperature: float = 10000.0) -> Tensor:
    """Encode every position by sines (even features) and cosines (odd features) of falling frequency.

    Args:
        positions: any shape, in radians.
        num_features: even number of features.

    Returns:
        positions.shape + (num_features,), float32.
    """
    pair = torch.arange(num_features // 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[..., None] / temperature ** (2 * pair / num_features)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class _SineCode(nn.Module):
    """Settings that the position codes of one, two and three axes have in common."""

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000.0,
        normalize: bool = False,
        scale: float | None = None,
        offset: float = 0.0,
    ) -> None:
        """Args:
        num_pos_feats: n features per spatial axis; the code has 2n channels.
        normalize: bring the positions of an axis to (0, scale] instead of counting 1, 2, ...
        scale: length of a normalised axis in radians, 2 pi unless given.
        offset: added to the counts, for instance -0.5 for pixel centres.
        """
        super().__init__()
        if scale is not None and not normalize:
            raise ValueError("scale has an effect only with normalize=True.")
        if num_pos_feats < 2 or num_pos_feats % 2:
            raise ValueError(f"num_pos_feats must be an even number of at least 2, got {num_pos_feats}.")
        self.num_pos_feats, self.temperature, self.normalize = num_pos_feats, temperature, normalize
        self.scale = 2 * math.pi if scale is None else scale
        self.offset = offset
        self._cache = ShapeCache()

    def _axis(self, length: int, num_features: int, device: torch.device) -> Tensor:
        """Code of an axis without mask: (length, num_features)."""
        counts = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        return self._encode(counts, counts[-1:], num_features)

    def _encode(self, counts: Tensor, last: Tensor, num_features: int) -> Tensor:
        """Code of counted positions; `last` is the count at the end of the axis, broadcast against `counts`."""
        positions = counts + self.offset
        if self.normalize:
            positions = positions / (last + 1e-6) * self.scale
        return sine_code(positions, num_features, self.temperature)


class PositionEmbeddingSine(_SineCode):
    """Sine code of rows and columns: the first n channels are from y, the last n from x."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode the cells of a map.

        Args:
            x: (B, C, H, W), used for its shape and device.
            mask: (B, H, W) bool, True where a cell is padding; padding is not counted.

        Returns:
            (B, 2n, H, W) float32; without mask a read-only view that repeats one code.
        """
        batch, _, height, width = x.shape
        if mask is None:
            code = self._cache.get((height, width, x.device), lambda: self._grid(height, width, x.device))
            return code.expand(batch, -1, -1, -1)
        counted = (~mask).float()
        rows, columns = counted.cumsum(1), counted.cumsum(2)
        y_code = self._encode(rows, rows[:, -1:], self.num_pos_feats)
        x_code = self._encode(columns, columns[:, :, -1:], self.num_pos_feats)
        return torch.cat((y_code, x_code), dim=-1).movedim(-1, 1)

    def _grid(self, height: int, width: int, device: torch.device) -> Tensor:
        """Code of a map without mask: (2n, H, W)."""
        y_code = self._axis(height, self.num_pos_feats, device).T[:, :, None].expand(-1, -1, width)
        x_code = self._axis(width, self.num_pos_feats, device).T[:, None].expand(-1, height, -1)
        return torch.cat((y_code, x_code))


class PositionEmbeddingSine1D(_SineCode):
    """Sine code of time, 2n channels, equal for all queries of a frame."""

    def forward(self, x: Tensor) -> Tensor:
        """Encode the first axis: x (T, B, Q, C), used for its shape and device, -> (T, B, Q, 2n) float32."""
        length, batch, num_queries, _ = x.shape
        code = self._cache.get((length, x.device), lambda: self._axis(length, 2 * self.num_pos_feats, x.device))
        return code[:, None, None].expand(-1, batch, num_queries, -1)


class PositionEmbeddingSine3D(_SineCode):
    """Sine code of a clip: the two-dimensional code plus a code of time with 2n channels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.space = PositionEmbeddingSine(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Encode the cells of a clip: x (B, T, C, H, W), used for shape and device, -> (B, T, 2n, H, W) float32."""
        batch, length = x.shape[:2]
        space = self.space(x[:, 0])[:, None]
        time = self._cache.get((length, x.device), lambda: self._axis(length, 2 * self.num_pos_feats, x.device))
        return space + time[None, :, :, None, None].expand(batch, -1, -1, -1, -1)


class MLP(nn.Module):
    """Linear layers with ReLU between them and nothing after the last."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(Linear(dims[i], dims[i + 1]) for i in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = layer(x, relu=True)
        return self.last(x)

    @property
    def last(self) -> Linear:
        return cast(Linear, self.layers[-1])


class _ResidualLayer(nn.Module):
    """x + f(x) with one layer norm: after the sum, or before f with `normalize_before`."""

    def __init__(self, d_model: int, dropout: float, normalize_before: bool, **parts: nn.Module) -> None:
        """Register `parts`, then the norm: the order of published checkpoints. Matrices are drawn xavier-uniformly."""
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.normalize_before = normalize_before
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def _before(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.normalize_before else x

    def _after(self, x: Tensor, update: Tensor) -> Tensor:
        x = x + self.dropout(update)
        return x if self.normalize_before else self.norm(x)


class SelfAttentionLayer(_ResidualLayer):
    """Attention among queries. Sequence first: (Q, B, C)."""

    self_attn: nn.MultiheadAttention

    def __init__(self, d_model: int, nhead: int, dropout: float = 0.0, normalize_before: bool = False) -> None:
        attention = nn.MultiheadAttention(d_model, nhead, dropout=dropout)
        super().__init__(d_model, dropout, normalize_before, self_attn=attention)

    def forward(
        self,
        tgt: Tensor,
        tgt_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            tgt: (Q, B, C).
            tgt_mask: see `attention.attend`, with S = Q.
            tgt_key_padding_mask: (B, Q) bool, True = never attended.
            query_pos: broadcastable to (Q, B, C), added to queries and keys.

        Returns:
            (Q, B, C).
        """
        x = self._before(tgt)
        query = _add_position(x, query_pos)
        return self._after(tgt, attend(self.self_attn, query, query, x, tgt_mask, tgt_key_padding_mask))


class CrossAttentionLayer(_ResidualLayer):
    """Attention of queries to a memory. Sequence first."""

    multihead_attn: nn.MultiheadAttention

    def __init__(self, d_model: int, nhead: int, dropout: float = 0.0, normalize_before: bool = False) -> None:
        attention = nn.MultiheadAttention(d_model, nhead, dropout=dropout)
        super().__init__(d_model, dropout, normalize_before, multihead_attn=attention)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            tgt: (Q, B, C).
            memory: (S, B, C), values and, with `pos` added, keys.
            memory_mask: see `attention.attend`.
            memory_key_padding_mask: (B, S) bool, True = never attended.
            pos: broadcastable to (S, B, C).
            query_pos: broadcastable to (Q, B, C).
            residual: (Q, B, C), what the result of attention is added to; `tgt` unless given.

        Returns:
            (Q, B, C).
        """
        query = _add_position(self._before(tgt), query_pos)
        key = _add_position(memory, pos)
        residual = tgt if residual is None else residual
        return self._after(
            residual, attend(self.multihead_attn, query, key, memory, memory_mask, memory_key_padding_mask)
        )


class FFNLayer(_ResidualLayer):
    """Two linear layers with ReLU between them, on every query."""

    linear1: Linear
    linear2: Linear

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        normalize_before: bool = False,
    ) -> None:
        linear1, linear2 = Linear(d_model, dim_feedforward), Linear(dim_feedforward, d_model)
        super().__init__(d_model, dropout, normalize_before, linear1=linear1, linear2=linear2)

    def forward(self, tgt: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self._after(tgt, feed_forward(self._before(tgt), self.linear1, self.linear2, self.dropout))


def _add_position(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position
