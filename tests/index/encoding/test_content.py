import os

import pytest
from PIL import Image

import index.encoding.content
from fanoise.catalog import ImageBytes, RemoteImage, TarMember
from fanoise.errors import ImageError
from index.encoding.content import ContentKeys, image_digest, is_dear, read_image
from tests.index.encoding.fakes import draw


def test_a_key_depends_on_text_image_and_embedder():
    keys = ContentKeys({"weights": "a", "dim": "4"})
    contents = [("x", None), ("y", None), ("x", "00"), (None, "00"), ("x", "01")]
    found = [keys.key(text, image) for text, image in contents]
    found += [ContentKeys({"weights": "b", "dim": "4"}).key("x", None)]
    assert len(set(found)) == len(found)
    assert all(len(bytes.fromhex(key)) == 32 for key in found)
    assert ContentKeys({"dim": "4", "weights": "a"}).key("x", None) == found[0]
    assert keys.key("", "00") == keys.key(None, "00")


def test_a_file_and_its_bytes_are_the_same_image(tmp_path):
    draw(tmp_path / "a.png", 1)
    draw(tmp_path / "b.png", 2)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    a = image_digest(tmp_path / "a.png")
    assert a == image_digest(str(tmp_path / "c.png")) == image_digest((tmp_path / "a.png").read_bytes())
    assert a != image_digest(tmp_path / "b.png")
    assert a == image_digest(tmp_path / "gone.png", content=(tmp_path / "a.png").read_bytes())


def test_an_image_in_a_table_or_a_tar_is_known_by_its_bytes(tmp_path):
    draw(tmp_path / "a.png", 1)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"x" * 512 + data + b"y" * 100)
    member = TarMember(tmp_path / "shard.tar", "a.png", 512, len(data))
    for image in (ImageBytes(data, "table: row 1"), member):
        assert not is_dear(image)
        assert read_image(image) == data
        assert image_digest(image) == image_digest(data)


def test_a_url_is_known_by_its_name_and_not_fetched():
    first, second = RemoteImage("https://images.example/1.jpg"), RemoteImage("https://images.example/2.jpg")
    assert is_dear(first)
    assert image_digest(first) == image_digest(RemoteImage(first.url)) != image_digest(second)


def test_decoded_images_differ_by_size_and_pixels():
    digests = {image_digest(Image.new("RGB", size, colour)) for size in ((2, 3), (3, 2)) for colour in ("red", "blue")}
    assert len(digests) == 4


def test_decoded_images_differ_by_what_lies_beside_their_pixels():
    red, blue, turned, clear = (Image.new("P", (2, 3)) for _ in range(4))
    for image, colour in ((red, (255, 0, 0)), (blue, (0, 0, 255)), (turned, (255, 0, 0)), (clear, (255, 0, 0))):
        image.putpalette(colour)
    turned.getexif()[0x0112] = 6
    clear.info["transparency"] = 0
    assert len({image.tobytes() for image in (red, blue, turned, clear)}) == 1
    assert len({image_digest(image) for image in (red, blue, turned, clear)}) == 4
    assert image_digest(red) == image_digest(Image.new("RGB", (2, 3), "red"))


class Page:
    """A source that is dear to read."""

    def __init__(self, path, number):
        self.path, self.number = path, number

    def __str__(self):
        return f"{self.path.name}#page={self.number}"

    def read(self):
        raise AssertionError("read for its digest")


def test_a_source_is_known_by_its_name_and_the_state_of_its_file(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(b"one")
    first = image_digest(Page(path, 1))
    assert first == image_digest(Page(path, 1)) != image_digest(Page(path, 2))
    path.write_bytes(b"more")
    assert image_digest(Page(path, 1)) != first
    path.unlink()
    assert image_digest(Page(path, 1)) not in (first, image_digest(Page(path, 2)))


def test_what_cannot_be_read_says_why(tmp_path, monkeypatch):
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "gone.png")
    assert caught.value.reason == "file not found"
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):  # and does not wait for a writer
        read_image(str(tmp_path / "pipe.png"))
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image("nul\0byte.png")
    draw(tmp_path / "a.png", 1)
    monkeypatch.setattr(index.encoding.content, "_MOST_BYTES", 10)
    with pytest.raises(ImageError, match="more than 10 bytes"):
        read_image(tmp_path / "a.png")


def test_an_empty_file_is_told_from_one_that_is_no_image(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageError, match="the file is empty"):
        read_image(tmp_path / "a.jpg")
