"""How alike two videos are. Shape legend: B clips, T frames, C channels, H W pixels; values in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(a_TCHW: Tensor, b_TCHW: Tensor) -> float:
    """Peak signal to noise ratio of the whole clip in dB; infinite for equal videos."""
    return float(-10 * (a_TCHW - b_TCHW).square().mean().log10())


def frame_psnr(a_TCHW: Tensor, b_TCHW: Tensor) -> float:
    """The mean of the frames' peak signal to noise ratios in dB, of which none counts for more than 100."""
    error_T = (a_TCHW - b_TCHW).square().mean(dim=(1, 2, 3))
    return float(-10 * error_T.clamp_min(1e-10).log10().mean())


def flicker(video_TCHW: Tensor) -> float:
    """Mean absolute difference of neighbouring frames in grey levels of 255; 0 for a picture.

    Blur lowers it, so a reconstruction's means little beside its source's. That of the residual, of one minus
    the other, is the honest measure of jitter.
    """
    return 255 * float(video_TCHW.diff(dim=0).abs().mean()) if len(video_TCHW) > 1 else 0.0


def ssim(a_TCHW: Tensor, b_TCHW: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), the mean over frames: Gaussian window of 11 pixels with sigma
    1.5, K = 0.01 and 0.03, population moments, no padding. Needs 11x11 pixels.
    """
    a, b = a_TCHW.flatten(0, 1)[:, None], b_TCHW.flatten(0, 1)[:, None]
    offset = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    window = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def feature_distance(a_TCHW: Tensor, b_TCHW: Tensor) -> float:
    """Distance of edges in space and time at four scales: 0 for equal videos, about 1 for unrelated ones.

    At each scale (pixels averaged by 1, 2, 4, 8) the differences between neighbours along t, y and x are the
    features; the distance is their RMS difference over the RMS of both, the mean over scales and axes. It
    needs no network and no weights, sees blur and lost motion, and is blind to a change of brightness. Axes
    without neighbours are left out.
    """
    found = []
    for scale in (1, 2, 4, 8):
        a, b = (F.avg_pool2d(x, scale) if scale > 1 else x for x in (a_TCHW, b_TCHW))
        for axis in (0, 2, 3):
            if a.shape[axis] > 1:
                da, db = a.diff(dim=axis), b.diff(dim=axis)
                energy = (da.square().mean() + db.square().mean()).clamp_min(1e-12)
                found.append(((da - db).square().mean() / energy).sqrt())
    return float(torch.stack(found).mean())
