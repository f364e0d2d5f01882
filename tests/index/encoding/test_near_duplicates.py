import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

import index.encoding.near_duplicates
from index.encoding.near_duplicates import MOST_BITS, MOST_COLOUR, SIGNATURE_BYTES, first_of_each, is_same_picture
from index.encoding.near_duplicates import signature as signature_of


def photo(seed, size=(320, 240)):
    """Smooth random colours with a few sharp shapes: no two alike, as photos are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    for _ in range(4):
        x, y = rng.integers(0, 200), rng.integers(0, 150)
        image.paste(tuple(rng.integers(0, 256, 3).tolist()), (int(x), int(y), int(x) + 60, int(y) + 50))
    return image


def shirt(colour, size=(240, 320)):
    """On a table, the same whatever its colour."""
    image = Image.new("RGB", size, (190, 180, 165))
    draw = ImageDraw.Draw(image)
    outline = [(70, 50), (20, 90), (40, 130), (65, 110), (65, 280), (175, 280), (175, 110), (200, 130), (220, 90)]
    draw.polygon([*outline, (170, 50), (120, 75)], fill=colour, outline=(60, 60, 60))
    draw.line([(120, 75), (120, 275)], fill=(90, 90, 90), width=2)
    return image


def receipt(lines, total):
    """Of the same firm: the same head, and grey; only what was bought differs."""
    image = Image.new("RGB", (220, 320), (250, 250, 248))
    draw = ImageDraw.Draw(image)
    draw.text((40, 12), "CORNER SHOP LTD", fill=(30, 30, 30))
    draw.text((52, 28), "12 High Street", fill=(60, 60, 60))
    for number, line in enumerate(lines):
        draw.text((16, 70 + 16 * number), line, fill=(40, 40, 40))
    draw.text((120, 280), f"TOTAL {total}", fill=(20, 20, 20))
    return image


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def copies(image):
    return [
        jpeg(image, 40),
        jpeg(image, 60),
        image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
        ImageEnhance.Brightness(image).enhance(1.05),
    ]


def pack(images):
    return np.frombuffer(b"".join(map(signature_of, images)), np.uint8).reshape(-1, SIGNATURE_BYTES)


def firsts(images):
    return first_of_each(pack(images), lambda a, b: is_same_picture(images[a], images[b])).tolist()


RECEIPTS = [
    receipt(["2 x milk     1.80", "1 x bread    2.40", "6 x eggs     1.95"], "6.15"),
    receipt(["1 x coffee   4.90", "3 x apples   1.20", "1 x butter   2.75"], "8.85"),
    receipt(["1 x batteries 7.99", "2 x soap     2.50", "1 x towels   3.10"], "13.59"),
]


@pytest.mark.parametrize("makers", [[photo(seed) for seed in range(40)], [shirt("navy"), shirt("crimson")], RECEIPTS])
def test_copies_at_another_size_or_quality_are_found_and_other_pictures_are_not(makers):
    images = [*makers, *(copy for image in makers for copy in copies(image))]
    found = firsts(images)
    assert found[: len(makers)] == list(range(len(makers)))
    expected = np.repeat(np.arange(len(makers)), 4)
    assert (np.array(found[len(makers) :]) == expected).mean() >= 0.95
    different = np.array(found[len(makers) :]) != expected
    assert (np.array(found[len(makers) :])[different] >= len(makers)).all()  # missed, but never taken for another one


def test_the_same_thing_in_another_colour_is_another_thing():
    red, green, blue = photo(1).split()
    recoloured = [Image.merge("RGB", (green, blue, red)), Image.merge("RGB", (blue, red, green))]
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "white")]
    shirts = [shirt(colour) for colour in ("navy", "crimson", "forestgreen", "gold")]
    images = [photo(1), *recoloured, *flat, *shirts]
    assert firsts(images) == list(range(len(images)))


def test_what_the_first_two_steps_take_for_the_same_the_third_tells_apart():
    distances = [np.bitwise_count(a ^ b).sum() for a, b in pairs(pack(RECEIPTS)[:, :8])]
    colours = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in pairs(pack(RECEIPTS)[:, 8:])]
    assert min(distances) <= MOST_BITS and max(colours) <= MOST_COLOUR
    assert not any(is_same_picture(a, b) for a, b in pairs(RECEIPTS))


def pairs(values):
    return [(values[i], values[j]) for j in range(len(values)) for i in range(j)]


def test_it_sees_brightness_only_where_it_differs_much():
    images = [photo(2), ImageEnhance.Brightness(photo(2)).enhance(1.02), ImageEnhance.Brightness(photo(2)).enhance(0.5)]
    assert firsts(images) == [0, 0, 2]


@pytest.mark.parametrize("size", [(1, 1), (1, 320), (320, 2), (3, 3)])
def test_tiny_and_thin_pictures_are_compared_as_well(size):
    grey = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    image, other = Image.fromarray(grey), Image.fromarray(255 - grey)
    assert is_same_picture(image, image.copy()) and is_same_picture(image, image.resize((40, 40)))
    assert not is_same_picture(image, other)


def brute_force(signatures, same, bits, colour, earlier=0):
    hashes, colours = signatures[:, :8], signatures[:, 8:].astype(int)
    first = []
    for row in range(len(signatures)):
        near = [
            one
            for one in range(row)
            if first[one] == one
            and np.bitwise_count(hashes[one] ^ hashes[row]).sum() <= bits
            and np.abs(colours[one] - colours[row]).max() <= colour
            and same(one, row)
        ]
        first.append(near[0] if near and row >= earlier else row)
    return first


@pytest.fixture
def noisy():
    """Signatures around twelve of them: some bits flipped, some colours moved."""

    def make(seed, bits, count=400):
        rng = np.random.default_rng(seed)
        base = rng.integers(0, 256, size=(12, SIGNATURE_BYTES), dtype=np.uint8)
        rows = base[rng.integers(0, 12, size=count)]
        flipped = np.unpackbits(rows[:, :8], axis=1)
        for row in flipped:
            row[rng.choice(64, size=rng.integers(0, bits + 3), replace=False)] ^= 1
        noise = rng.integers(0, 7, size=(count, SIGNATURE_BYTES - 8)) * rng.integers(0, 4, size=(count, 1))
        colours = (rows[:, 8:].astype(int) + noise).clip(0, 255).astype(np.uint8)
        return np.concatenate([np.packbits(flipped, axis=1), colours], axis=1)

    return make


@pytest.mark.parametrize("bits", [0, 1, 4, 7, 20])
@pytest.mark.parametrize("block", [1, 7, 50, 1024])
def test_it_agrees_with_comparing_all_with_all(noisy, monkeypatch, bits, block):
    monkeypatch.setattr(index.encoding.near_duplicates, "_BLOCK", block)
    monkeypatch.setattr(index.encoding.near_duplicates, "_MOST_COMPARED", 400)
    signatures = noisy(bits, bits, 250)
    asked = []

    def same(a, b):
        asked.append((a, b))
        return (a * 7 + b) % 5 != 0

    found = first_of_each(signatures, same, bits=bits, colour=16)
    assert found.tolist() == brute_force(signatures, lambda a, b: (a * 7 + b) % 5 != 0, bits, 16)
    assert 12 <= len(set(found.tolist())) < 250
    assert all(a < b and found[a] == a for a, b in asked)  # only first ones are compared with


@pytest.mark.parametrize("earlier", [1, 90, 249, 250])
@pytest.mark.parametrize("block", [7, 1024])
def test_earlier_rows_are_first_ones_and_only_new_rows_are_looked_at(noisy, monkeypatch, earlier, block):
    monkeypatch.setattr(index.encoding.near_duplicates, "_BLOCK", block)
    monkeypatch.setattr(index.encoding.near_duplicates, "_MOST_COMPARED", 400)
    signatures, asked, counts = noisy(4, 4, 250), [], []

    def same(a, b):
        asked.append((a, b))
        return (a * 7 + b) % 5 != 0

    options = {"bits": 4, "colour": 16, "earlier": earlier}
    found = first_of_each(signatures, same, advance=counts.append, **options)
    assert all(a < b and b >= earlier for a, b in asked) and sum(counts) == 250 - earlier
    assert found.tolist() == brute_force(signatures, same, 4, 16, earlier)


def test_where_no_earlier_rows_look_alike_it_is_as_if_all_were_new(noisy):
    signatures = noisy(7, 7, 300)
    first = first_of_each(signatures, lambda a, b: True, colour=16)
    apart = np.unique(first[:150])
    signatures = np.concatenate([signatures[apart], signatures[150:]])
    whole = first_of_each(signatures, lambda a, b: True, colour=16)
    assert whole[: len(apart)].tolist() == list(range(len(apart))) and len(set(whole.tolist())) < len(whole)
    assert first_of_each(signatures, lambda a, b: True, colour=16, earlier=len(apart)).tolist() == whole.tolist()


def test_a_chain_of_small_steps_does_not_join_its_ends():
    rows = np.zeros((40, SIGNATURE_BYTES), np.uint8)
    rows[:, 8:] = np.arange(40)[:, None]
    assert sorted(set(first_of_each(rows, lambda a, b: True, bits=0, colour=16).tolist())) == [0, 17, 34]


def test_where_all_look_alike_each_is_compared_with_few(monkeypatch):
    monkeypatch.setattr(index.encoding.near_duplicates, "_BLOCK", 64)
    monkeypatch.setattr(index.encoding.near_duplicates, "_MOST_COMPARED", 3)
    rows, asked = np.zeros((500, SIGNATURE_BYTES), np.uint8), []
    found = first_of_each(rows, lambda a, b: asked.append((a, b)))
    assert found.tolist() == list(range(500))
    assert max(np.bincount([b for _, b in asked])) == 3


def test_rows_are_counted():
    counts = []
    first_of_each(np.zeros((2500, SIGNATURE_BYTES), np.uint8), lambda a, b: True, advance=counts.append)
    assert sum(counts) == 2500 and len(counts) > 1


def test_none_and_one_and_a_thousand_equal_ones():
    assert first_of_each(np.empty((0, SIGNATURE_BYTES), np.uint8), lambda a, b: True).tolist() == []
    assert first_of_each(np.zeros((1, SIGNATURE_BYTES), np.uint8), lambda a, b: True).tolist() == [0]
    equal = np.tile(pack([photo(3)]), (1000, 1))
    assert set(first_of_each(equal, lambda a, b: True).tolist()) == {0}
