"""Slow answers straight from the definitions, written without the package's own algorithms.

Views are lists of retained pixel sets, placements are lists of covered pixel sets, and certificates are decided by
trying every placement and every vote that the affected views could cast instead.
"""

from itertools import combinations, product

import numpy as np


def pixels_of_interval(start, length, size):
    return [(start + step) % size for step in range(length)]


def crop_pixels(image_size, crop_size, wraps, stride):
    (height, width), (crop_height, crop_width) = image_size, crop_size
    row_starts = range(0, height if wraps else height - crop_height + 1, stride[0])
    column_starts = range(0, width if wraps else width - crop_width + 1, stride[1])
    return [
        set(product(pixels_of_interval(r, crop_height, height), pixels_of_interval(c, crop_width, width)))
        for r in row_starts
        for c in column_starts
    ]


def band_pixels(image_size, width, axis, stride):
    height, image_width = image_size
    if axis == "column":
        starts = range(0, image_width, stride)
        return [set(product(range(height), pixels_of_interval(s, width, image_width))) for s in starts]
    return [set(product(pixels_of_interval(s, width, height), range(image_width))) for s in range(0, height, stride)]


def cell_pixels(image_size, cell_size, num_cells):
    height, width = image_size
    cells = []
    for top in range(0, height, cell_size[0]):
        for left in range(0, width, cell_size[1]):
            rows = range(top, min(top + cell_size[0], height))
            columns = range(left, min(left + cell_size[1], width))
            cells.append(set(product(rows, columns)))
    return [set().union(*chosen) for chosen in combinations(cells, num_cells)]


def placement_pixels(image_size, mask):
    """Pixels covered at every place of the footprint's box inside the image, row-major."""
    height, width = image_size
    box_height, box_width = len(mask), len(mask[0])
    return [
        {(top + i, left + j) for i in range(box_height) for j in range(box_width) if mask[i][j]}
        for top in range(height - box_height + 1)
        for left in range(width - box_width + 1)
    ]


def incidence_by_pixels(views, placements):
    return np.array([[bool(view & covered) for view in views] for covered in placements])


def winner(counts):
    best = 0
    for k in range(1, len(counts)):
        if counts[k] > counts[best]:
            best = k
    return best


def tally(ballots, num_classes):
    counts = [0] * num_classes
    for ballot in ballots:
        for k in ballot:
            counts[k] += 1
    return counts


def ballots_of(votes_VK):
    return [tuple(np.flatnonzero(row)) for row in votes_VK]


def single_votes(num_classes):
    return [(k,) for k in range(num_classes)]


def any_votes(num_classes):
    """Every set of classes that a view under the threshold rule might vote for, none included."""
    return [c for size in range(num_classes + 1) for c in combinations(range(num_classes), size)]


def can_be_flipped(ballots, incidence_PV, num_classes, choices):
    """Whether some assignment of the affected views' votes, at some placement, changes the winner."""
    before = winner(tally(ballots, num_classes))
    for affected in incidence_PV:
        kept = [ballot for ballot, hit in zip(ballots, affected, strict=True) if not hit]
        for chosen in product(choices, repeat=int(affected.sum())):
            if winner(tally(kept + list(chosen), num_classes)) != before:
                return True
    return False


def can_be_flipped_by_one_rival(ballots, incidence_PV, num_classes):
    """As ``can_be_flipped``, when all affected views back the same class (no attacker can do better; also tested)."""
    before = winner(tally(ballots, num_classes))
    for affected in incidence_PV:
        kept = [ballot for ballot, hit in zip(ballots, affected, strict=True) if not hit]
        for rival in range(num_classes):
            if winner(tally(kept + [(rival,)] * int(affected.sum()), num_classes)) != before:
                return True
    return False
