"""The classical way to the same end: SIFT (Lowe 2004), mutual neighbours that pass the ratio test."""

from __future__ import annotations

import numpy as np

MAX_RATIO = 0.8  # of the distances to the nearest and the second nearest descriptor


def sift_matches(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points (K, 2), points (K, 2), scores (K,)) of pictures (H, W, 3) sRGB in [0, 1]; px, pixel centres at +0.5.

    The score is the cosine of the descriptors. There are none where a picture has no key points.
    """
    from skimage.feature import match_descriptors

    (points_a, seen_a), (points_b, seen_b) = _described(a), _described(b)
    if len(points_a) < 2 or len(points_b) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)
    pairs = match_descriptors(seen_a, seen_b, cross_check=True, max_ratio=MAX_RATIO)
    chosen_a, chosen_b = seen_a[pairs[:, 0]].astype(float), seen_b[pairs[:, 1]].astype(float)
    scale = np.linalg.norm(chosen_a, axis=1) * np.linalg.norm(chosen_b, axis=1)
    return points_a[pairs[:, 0]], points_b[pairs[:, 1]], (chosen_a * chosen_b).sum(1) / np.maximum(scale, 1e-9)


def _described(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Key points (K, 2) as (x, y) and descriptors (K, 128)."""
    from skimage.color import rgb2gray
    from skimage.feature import SIFT

    detector = SIFT()
    try:
        detector.detect_and_extract(rgb2gray(picture))
    except RuntimeError:  # its way to say that there are none
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8)
    return detector.positions[:, ::-1].astype(float) + 0.5, detector.descriptors
