"""Reading masks at points instead of everywhere, and choosing points where a mask is least certain.

Kirillov et al., "PointRend: Image Segmentation as Rendering", CVPR 2020, section 3.1 (training).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def point_sample(x: Tensor, points: Tensor) -> Tensor:
    """Interpolate maps bilinearly; outside of a map everything is 0.

    Args:
        x: (N, C, H, W).
        points: (N, P, 2) as (x, y) in [0, 1], from the outer left/top to the outer right/bottom edge.

    Returns:
        (N, C, P) of x's dtype.
    """
    grid = (2.0 * points - 1.0).to(x.dtype)
    return F.grid_sample(x, grid[:, :, None], mode="bilinear", padding_mode="zeros", align_corners=False)[..., 0]


def uncertain_points(
    logits: Tensor, num_points: int, oversample_ratio: float = 3.0, importance_sample_ratio: float = 0.75
) -> Tensor:
    """Choose points for a mask loss: most where the prediction is least certain, the rest anywhere.

    Args:
        logits: (N, 1, h, w) mask logits; every mask gets its own points. No gradient flows through the choice.
        num_points: P.
        oversample_ratio: at least 1; P times this many candidates are drawn.
        importance_sample_ratio: in [0, 1], the part of the P points that are the least certain candidates.

    Returns:
        (N, P, 2) as (x, y) in [0, 1], the uncertain ones first.
    """
    if oversample_ratio < 1:
        raise ValueError(f"MODEL.MASK_FORMER.OVERSAMPLE_RATIO must be at least 1, got {oversample_ratio}.")
    if not 0 <= importance_sample_ratio <= 1:
        raise ValueError(f"MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO must be in [0, 1], got {importance_sample_ratio}.")
    num_masks, device = len(logits), logits.device
    num_uncertain = int(importance_sample_ratio * num_points)
    with torch.no_grad():
        candidates = torch.rand(num_masks, int(num_points * oversample_ratio), 2, device=device)
        certainty = point_sample(logits.detach(), candidates)[:, 0].abs()  # (N, candidates)
        chosen = certainty.neg().topk(num_uncertain, dim=1).indices
        points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        if num_uncertain == num_points:
            return points
        anywhere = torch.rand(num_masks, num_points - num_uncertain, 2, device=device)
        return torch.cat((points, anywhere), dim=1)
