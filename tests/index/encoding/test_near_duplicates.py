import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from index.encoding.near_duplicates import COLOUR_BYTES, SIGNATURE_BYTES, first_of_each, signature


def photo(seed, size=(320, 240)):
    """Smooth random colours with a few sharp shapes: no two alike, as photos are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    for _ in range(4):
        x, y = rng.integers(0, 200), rng.integers(0, 150)
        image.paste(tuple(rng.integers(0, 256, 3).tolist()), (int(x), int(y), int(x) + 60, int(y) + 50))
    return image


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def pack(images):
    return np.frombuffer(b"".join(map(signature, images)), np.uint8).reshape(-1, SIGNATURE_BYTES)


def test_copies_at_another_size_or_quality_are_found_and_other_photos_are_not():
    photos = [photo(seed) for seed in range(60)]
    copies = [jpeg(one, 40) for one in photos] + [one.resize((160, 120), Image.Resampling.LANCZOS) for one in photos]
    first = first_of_each(pack(photos + copies))
    assert first[:60].tolist() == list(range(60))
    assert (first[60:120] == np.arange(60)).mean() >= 0.95
    assert (first[120:] == np.arange(60)).mean() >= 0.95


def test_the_same_thing_in_another_colour_is_another_thing():
    shirt = photo(1)
    red, green, blue = shirt.split()
    recoloured = [Image.merge("RGB", (green, blue, red)), Image.merge("RGB", (blue, red, green))]
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "white")]
    assert first_of_each(pack([shirt, *recoloured, *flat])).tolist() == [0, 1, 2, 3, 4, 5]


def test_it_sees_brightness_only_where_it_differs_much():
    images = [photo(2), ImageEnhance.Brightness(photo(2)).enhance(1.02), ImageEnhance.Brightness(photo(2)).enhance(0.5)]
    assert first_of_each(pack(images)).tolist() == [0, 0, 2]


def brute_force(signatures, bits, colour):
    hashes, colours = signatures[:, :8], signatures[:, 8:].astype(int)
    leaders, first = [], []
    for row in range(len(signatures)):
        near = [
            one
            for one in leaders
            if np.bitwise_count(hashes[one] ^ hashes[row]).sum() <= bits
            and np.abs(colours[one] - colours[row]).max() <= colour
        ]
        first.append(near[0] if near else row)
        leaders += [] if near else [row]
    return first


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 7, 8, 12, 15])
def test_it_agrees_with_comparing_all_with_all(bits):
    rng = np.random.default_rng(bits)
    base = rng.integers(0, 256, size=(12, SIGNATURE_BYTES), dtype=np.uint8)
    rows = base[rng.integers(0, 12, size=400)]
    flipped = np.unpackbits(rows[:, :8], axis=1)
    for row in flipped:
        row[rng.choice(64, size=rng.integers(0, bits + 3), replace=False)] ^= 1
    noise = rng.integers(0, 7, size=(400, COLOUR_BYTES)) * rng.integers(0, 4, size=(400, 1))
    colours = (rows[:, 8:].astype(int) + noise).clip(0, 255).astype(np.uint8)
    signatures = np.concatenate([np.packbits(flipped, axis=1), colours], axis=1)
    found = first_of_each(signatures, bits=bits, colour=16)
    assert found.tolist() == brute_force(signatures, bits, 16)
    assert 12 <= len(set(found.tolist())) < 400


def test_a_chain_of_small_steps_does_not_join_its_ends():
    rows = np.zeros((40, SIGNATURE_BYTES), np.uint8)
    rows[:, 8:] = np.arange(40)[:, None]
    assert sorted(set(first_of_each(rows, bits=0, colour=16).tolist())) == [0, 17, 34]


def test_none_and_one():
    assert first_of_each(np.empty((0, SIGNATURE_BYTES), np.uint8)).tolist() == []
    assert first_of_each(np.zeros((1, SIGNATURE_BYTES), np.uint8)).tolist() == [0]


def test_a_thousand_equal_pictures_have_one_first():
    assert set(first_of_each(np.tile(pack([photo(3)]), (1000, 1))).tolist()) == {0}


def test_too_many_bits_are_refused():
    with pytest.raises(ValueError, match="from 0 to 15"):
        first_of_each(np.zeros((1, SIGNATURE_BYTES), np.uint8), bits=16)
