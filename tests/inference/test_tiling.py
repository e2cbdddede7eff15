import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucseg_jax.inference import tiling
from nucseg_jax.network.unet_plus_plus import Interior, UNetPlusPlus, infer

LENGTHS = st.integers(1, 300)


def cut(grid, image):
    """Cuts the tiles of a grid out of an image, zeros where it ends."""
    height, width = grid.rows.tile, grid.columns.tile
    below, right = (
        axis.starts[-1] + axis.tile - axis.length for axis in (grid.rows, grid.columns)
    )
    padded = np.pad(image, [(0, max(0, below)), (0, max(0, right)), (0, 0)])
    for top, left in grid.tiles:
        yield padded[top : top + height, left : left + width]


def assemble(grid, tiles):
    done, parts = 0, []
    for top, rows in tiling.stitch(grid, tiles):
        assert top == done
        done += len(rows)
        parts.append(rows)
    return np.concatenate(parts)


@settings(deadline=None)
@given(LENGTHS, LENGTHS, st.integers(0, 12), st.sampled_from([1, 4, 16]))
def test_stitching_tiles_gives_the_image_back(height, width, margin, multiple):
    grid = tiling.plan(height, width, tile=(80, 64), margin=margin, multiple=multiple)
    image = np.random.default_rng(0).uniform(size=(height, width, 2))
    image = image.astype(np.float32)
    np.testing.assert_allclose(assemble(grid, cut(grid, image)), image, atol=1e-6)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 12), st.sampled_from([1, 4, 16]))
def test_tiles_cover_the_axis_in_step_and_weigh_one(length, margin, multiple):
    axis = tiling.plan_axis(length, tile=64, margin=margin, multiple=multiple)
    assert all(start % multiple == 0 for start in axis.starts)
    total = np.zeros(axis.starts[-1] + axis.tile)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert (weights >= 0).all()
        total[start : start + 64] += weights
    assert len(total) >= length
    np.testing.assert_allclose(total[:length], 1, atol=1e-6)


@settings(deadline=None)
@given(LENGTHS, LENGTHS, st.integers(0, 8))
def test_what_is_wrong_within_the_margin_does_not_show(height, width, margin):
    """Pixels that a tile cannot know, near its inner edges, never reach the result."""
    grid = tiling.plan(height, width, tile=(48, 48), margin=margin, multiple=4)
    image = np.random.default_rng(0).uniform(size=(height, width, 1))
    image = image.astype(np.float32)

    def spoil(tile, top, left):
        tile = tile.copy()
        if top > 0:
            tile[:margin] = np.inf
        if left > 0:
            tile[:, :margin] = np.inf
        if top < grid.rows.starts[-1]:
            tile[48 - margin :] = np.inf
        if left < grid.columns.starts[-1]:
            tile[:, 48 - margin :] = np.inf
        return np.nan_to_num(tile, posinf=1e6)

    tiles = [
        spoil(tile, *place)
        for tile, place in zip(cut(grid, image), grid.tiles, strict=True)
    ]
    np.testing.assert_allclose(assemble(grid, tiles), image, atol=1e-5)


def test_tiles_go_over_into_each_other():
    """Where two flat tiles of unlike brightness meet, there are shades in between."""
    grid = tiling.plan(32, 96, tile=(32, 64), margin=4, multiple=4)
    flat = [np.full((32, 64, 1), value, np.float32) for value in (0, 1)]
    row = assemble(grid, flat)[0, :, 0]
    assert row[0] == 0 and row[-1] == 1
    assert (np.diff(row) >= 0).all() and np.diff(row).max() <= 0.5


def test_an_image_smaller_than_a_tile_is_one_tile():
    grid = tiling.plan(5, 7, tile=(64, 64), margin=8, multiple=16)
    assert grid.tiles == [(0, 0)]


def test_tiles_that_only_overlap_are_refused():
    with pytest.raises(ValueError, match="tiles of 64 pixels"):
        tiling.plan_axis(1000, tile=64, margin=32, multiple=16)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_reach_is_how_far_a_pixel_is_felt(depth):
    """With no negative weight nothing cancels: one pixel shows its whole reach."""
    model = UNetPlusPlus(features=(2,) * depth)
    image = jnp.zeros((1, 128, 16, 3))
    variables = model.init(jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.01, variables)
    dark = infer(model, variables, image)
    felt = 0
    for row in range(64, 64 + 2 ** (depth - 1)):
        bright = infer(model, variables, image.at[0, row, 8].set(1.0))
        rows = np.nonzero(np.any(np.asarray(bright != dark)[-1, 0], axis=(1, 2)))[0]
        felt = max(felt, row - rows[0], rows[-1] - row)
    assert felt == tiling.reach(depth)


def spoilt(depth, surround):
    """How far into an interior, `surround` from the edges, it is not the whole."""
    model = UNetPlusPlus(features=(2,) * depth)
    cell = 2 ** (depth - 1)
    first, side = surround, 6 * cell
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(1, side + 2 * surround + cell, cell, 3))
    image = jnp.asarray(image, jnp.float32)
    variables = model.init(jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.1, variables)
    # What lies beyond the image's edges is bright enough to show wherever it is felt.
    beyond = [(0, 0), (16 * cell, 16 * cell), (0, 0), (0, 0)]
    whole = infer(model, variables, jnp.pad(image, beyond, constant_values=1e4))
    part = infer(model, variables, image, Interior(first, 0, side, cell))
    expected = whole[:, :, 16 * cell + first :][:, :, :side]
    wrong = np.any(~np.isclose(part, expected, rtol=1e-5), axis=(0, 1, 3, 4))
    rows = np.nonzero(wrong)[0]
    # Those near the interior's first row and those near its last.
    return max(np.append(rows, side - 1 - rows).reshape(2, -1).min(axis=0)) + 1


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_an_interior_is_the_whole_but_for_the_reach_of_the_decoder(depth):
    surround = tiling.encoder_surround(depth)
    assert spoilt(depth, surround) == tiling.decoder_reach(depth)
    # A smaller surround, in step with the lowest level, would not do.
    assert spoilt(depth, surround - 2 ** (depth - 1)) > tiling.decoder_reach(depth)


@given(LENGTHS, st.integers(0, 12), st.sampled_from([0, 16, 64]), st.integers(0, 2000))
def test_what_is_read_for_a_tile_holds_it_and_its_surround(
    length, margin, surround, end
):
    axis = tiling.plan_axis(
        length, tile=64, margin=margin, multiple=16, surround=surround, end=16 * end
    )
    end = max(16 * end, axis.starts[-1] + axis.tile)
    for start in axis.starts:
        first = axis.first_seen(start)
        assert first % 16 == 0 and first >= 0 and first + axis.seen <= end
        assert first <= max(start - surround, 0)
        assert first + axis.seen >= min(start + axis.tile + surround, end)


def test_largest_tiles_of_known_networks():
    def sides(width, num_targets):
        networks = [(8, 3), (16, 4), (32, 4), (64, 5)]
        return [
            tiling.largest_tile(
                width, features=features, depth=depth, num_targets=num_targets
            )
            for features, depth in networks
        ]

    assert sides(256, 1) == [1536, 1536, 1280, 832]
    assert sides(8000, 3) == [1536, 1472, 1088, 768]
    assert sides(20_000, 3) == [1344, 1088, 832, 768]


@given(
    st.lists(st.integers(1, 200_000), min_size=2, max_size=2),
    st.sampled_from([8, 16, 32, 64]),
    st.integers(2, 5),
    st.integers(1, 3),
)
def test_tiles_are_smaller_the_more_memory_an_image_takes(
    widths, features, depth, num_targets
):
    def side(width, features, depth, num_targets):
        return tiling.largest_tile(
            width, features=features, depth=depth, num_targets=num_targets
        )

    largest = side(min(widths), features, depth, num_targets)
    assert largest % 64 == 0 and 768 <= largest <= 1536
    assert side(max(widths), features, depth, num_targets) <= largest
    assert side(min(widths), 2 * features, depth, num_targets) <= largest
    assert side(min(widths), features, depth + 1, num_targets) <= largest
    assert side(min(widths), features, depth, num_targets + 1) <= largest


@settings(deadline=None)
@given(st.integers(1, 3000), st.sampled_from([64, 128, 320]), st.integers(0, 12))
def test_a_fitted_tile_needs_no_more_tiles_and_wastes_less(length, largest, margin):
    tile = tiling.fit_tile(length, largest=largest, margin=margin, multiple=16, step=16)
    assert tile % 16 == 0 and tile <= largest
    plan = [
        tiling.plan_axis(length, tile=t, margin=margin, multiple=16)
        for t in (tile, largest)
    ]
    assert len(plan[0].starts) == len(plan[1].starts)
