"""What a process lacks, piece by piece: against a table that has every page by itself."""

from __future__ import annotations

import random

import pytest

from ckpt.host.lazy.missing import Missing, Piece

PAGE = 4096


def table_of(missing: Missing) -> dict[int, int]:
    """From each page that is missing to where it was in the images."""
    found = {}
    for piece in missing:
        assert piece.start < piece.end
        for step in range(0, piece.end - piece.start, PAGE):
            assert piece.start + step not in found
            found[piece.start + step] = piece.image + step
    return found


@pytest.mark.parametrize("seed", range(30))
def test_what_is_missing_is_what_a_table_of_pages_says(seed: int) -> None:
    draw = random.Random(seed)
    runs = sorted(draw.sample(range(1, 200), 20))
    pieces = [
        Piece(first * PAGE, end * PAGE, first * PAGE)
        for first, end in zip(runs[::2], runs[1::2], strict=True)
    ]
    missing = Missing(pieces)
    table = table_of(missing)
    for _ in range(60):
        start = draw.randrange(260) * PAGE
        size = draw.randrange(1, 30) * PAGE
        match draw.randrange(3):
            case 0:
                missing.drop(start, start + size)
                table = {at: image for at, image in table.items() if not start <= at < start + size}
            case 1 if seed % 2:
                to = (300 + draw.randrange(260)) * PAGE
                taken = {at: image for at, image in table.items() if start <= at < start + size}
                table = {at: image for at, image in table.items() if at not in taken}
                table = {at: image for at, image in table.items() if not to <= at < to + size}
                table |= {at - start + to: image for at, image in taken.items()}
                missing.move(start, to, size)
            case _:
                parts = missing.of_image(start, start + size)
                found = table_of(Missing(parts))
                assert found == {at: image for at, image in table.items() if start <= image < start + size}
        assert table_of(missing) == table
        assert table_of(missing.copy()) == table
        at = draw.randrange(600) * PAGE
        piece = missing.at(at)
        assert (piece is not None) == (at in table)
        if piece is not None:
            assert piece.image + at - piece.start == table[at]
