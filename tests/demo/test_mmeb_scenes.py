import numpy as np
import pytest

from demo.mmeb_scenes import SIDE, Collage, boxes_of, crops_of, render_collage
from demo.products import sample_products

PRODUCTS = sample_products(4, seed=2, held_out=False)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_boxes_lie_inside_the_scene_and_do_not_overlap(count):
    for view in range(30):
        covered = np.zeros((SIDE, SIDE), int)
        for left, top, right, bottom in boxes_of(Collage(tuple(PRODUCTS[:count]), view)):
            assert 0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1


def test_a_crop_holds_its_own_product_and_no_other():
    both = Collage((PRODUCTS[0], PRODUCTS[1]), view=5)
    changed = Collage((PRODUCTS[0], PRODUCTS[2]), view=5)
    before, after = (crops_of(each, render_collage(each)) for each in (both, changed))
    first, second = (
        np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in zip(before, after, strict=True)
    )
    assert first < 1  # the camera's compression alone
    assert second > 10


def test_a_scene_is_the_same_every_time_and_another_in_another_view():
    collage = Collage(tuple(PRODUCTS[:3]), view=1)
    assert render_collage(collage).tobytes() == render_collage(collage).tobytes()
    assert render_collage(collage).tobytes() != render_collage(Collage(collage.products, view=2)).tobytes()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_scene_of_another_number_of_products_is_refused(count):
    with pytest.raises(ValueError, match=f"has {count} products, must have 2 to 4"):
        Collage(tuple((PRODUCTS * 2)[:count]), view=0)
