import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from fanoise.catalog import Item, TarMember, read_catalog, webdataset
from fanoise.errors import CatalogError, ImageError
from fanoise.images import open_image
from tests.fanoise.catalog.files import BLUE, RED, png, raw, read


def tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
                continue
            header = tarfile.TarInfo(name)
            header.size = len(content)
            file.addfile(header, io.BytesIO(content))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member's header with a right checksum, whatever the size."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 4 + size.to_bytes(8, "big", signed=True) if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_members_with_one_name_are_a_sample(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        {
            "0001.jpg": png(RED),
            "0001.txt": b"a red square\n",
            "0001.json": json.dumps({"price": 3, "id": "other", "text": "not this", "image": "nor this"}).encode(),
            "0001.cls": b"7",
            "0001.npy": b"no business of ours",
            "./sub/0002.PNG": png(BLUE),
            "sub/0003.txt": b"words",
        },
    )
    items = list(read_catalog(path))
    assert [(item.id, item.text, dict(item.fields)) for item in items] == [
        ("0001", "a red square", {"price": 3, "text": "a red square", "cls": "7"}),
        ("sub/0002", None, {}),
        ("sub/0003", "words", {"text": "words"}),
    ]
    assert [open_image(item.image).getpixel((0, 0)) for item in items[:2]] == [RED, BLUE]
    assert str(items[1].image) == f"{path}/./sub/0002.PNG"
    assert items[2].image is None


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_and_odd_names_are_read(tmp_path, kind):
    names = ["a b", 'it\'s "q"', "line\nbreak", "näh 🦊"]
    names += ["n" * 150] if kind != tarfile.USTAR_FORMAT else []
    path = tar(tmp_path / "a.tar", {f"{name}.png": png() for name in names}, kind)
    items, rejects = read(path)
    assert ([item.id for item in items], rejects) == (names, [])
    assert all(open_image(item.image).getpixel((0, 0)) == RED for item in items)


def test_names_that_are_not_utf8_are_kept(tmp_path):
    name = os.fsdecode(b"gr\xfcn")
    path = tar(tmp_path / "a.tar", {f"{name}.png": png()}, tarfile.GNU_FORMAT)
    (item,) = read_catalog(path)
    assert os.fsencode(item.id) == b"gr\xfcn"
    assert open_image(item.image).size == (4, 4)


def test_the_suffix_begins_at_the_first_dot_of_the_name(tmp_path):
    path = tar(tmp_path / "a.tar", {"v1.0/a.left.png": png(RED), "v1.0/a.right.png": png(BLUE), "v1.0/b.png": png(RED)})
    items = list(read_catalog(path))
    assert [(item.id, dict(item.fields)) for item in items] == [
        ("v1.0/a#0", {"item": "v1.0/a"}),
        ("v1.0/a#1", {"item": "v1.0/a"}),
        ("v1.0/b", {}),
    ]
    assert [open_image(item.image).getpixel((0, 0)) for item in items] == [RED, BLUE, RED]


def test_members_without_a_name_or_suffix_and_those_about_the_shard_are_no_samples(tmp_path):
    members = {"README": b"x", ".hidden.png": png(), "._a.png": b"x", "__index__": b"x", "__meta__/a.png": png()}
    path = tar(tmp_path / "a.tar", {**members, "a.png": png(), "dir.png": link("dir.png", "", tarfile.DIRTYPE)})
    items, rejects = read(path)
    assert ([item.id for item in items], rejects) == (["a"], [])


def test_names_that_would_lead_out_are_only_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = {"../../up.png": png(), "/etc/evil.png": png(), "a/../b.png": png()}
    path = tar(tmp_path / "in/a.tar", members)
    before = sorted(tmp_path.rglob("*"))
    items = list(read_catalog(path))
    assert [item.id for item in items] == ["../../up", "/etc/evil", "a/../b"]
    assert all(open_image(item.image).size == (4, 4) for item in items)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_picture_of_a_kind_that_is_not_read_is_a_reject_unless_another_is_there(tmp_path):
    path = tar(tmp_path / "a.tar", {"a.avif": b"x", "a.txt": b"mug", "b.avif": b"x", "b.png": png(), "c.txt": b"cup"})
    items, rejects = read(path)
    assert [item.id for item in items] == ["b", "c"]
    assert rejects == [("a", "a.tar/a.avif", ".avif images are not read; convert it, such as to JPEG")]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_rejects_and_never_followed(tmp_path, kind):
    path = tar(tmp_path / "a.tar", {"a.png": png(), "b.png": link("b.png", "/etc/passwd", kind), "c.png": png()})
    items, rejects = read(path)
    assert [item.id for item in items] == ["a", "c"]
    assert rejects == [("b", "a.tar/b.png", "a link or special file; store the file itself")]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("b.json", b"{", "not JSON"),
        ("b.json", b"[1]", "its JSON is a list, must be an object"),
        ("b.json", b"[" * 100_000, "not JSON"),
        ("b.txt", b"gr\xfcn", "not UTF-8"),
    ],
)
def test_a_damaged_text_is_one_reject(tmp_path, name, content, reason):
    path = tar(tmp_path / "a.tar", {"a.png": png(), "b.png": png(), name: content, "c.png": png()})
    items, rejects = read(path)
    assert ([item.id for item in items], rejects) == (["a", "c"], [("b", f"a.tar/{name}", reason)])
    with pytest.raises(CatalogError, match=rf"a\.tar/{name}: {reason}"):
        list(read_catalog(path))


def test_a_first_sample_that_is_damaged_or_lacks_an_image_is_no_reason_to_stop(tmp_path):
    path = tar(tmp_path / "a.tar", {"a.json": b"{", "b.cls": b"1", "c.png": png()})
    items, rejects = read(path)
    assert [item.id for item in items] == ["c"]
    assert [id for id, *_ in rejects] == ["a", "b"]


def test_texts_and_images_have_a_largest_size(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar", {"a.png": png(), "a.txt": b"x" * 50, "b.png": png()})
    monkeypatch.setattr(webdataset, "_MAX_TEXT_BYTES", 49)
    items, rejects = read(path)
    assert rejects == [("a", "a.tar/a.txt", "50 bytes, more than the limit of 49 for a text")]
    monkeypatch.setattr(webdataset, "_MAX_IMAGE_BYTES", 10)
    with pytest.raises(ImageError, match="bytes, more than the limit of 10"):
        open_image(items[0].image)


def test_a_sample_torn_apart_is_a_duplicate(tmp_path):
    path = tar(tmp_path / "a.tar", {"a.png": png(), "b.png": png(), "a.txt": b"x"})
    with pytest.raises(CatalogError, match=r"a\.tar: row 3: id 'a' was already used in row 1"):
        read(path)


def test_the_ids_of_several_shards_begin_with_the_shard(tmp_path):
    for name in ("x/s-000", "x/s-001", "t"):
        tar(tmp_path / f"{name}.tar", {"a.png": png(), "a.txt": name.encode()})
    for catalog in (tmp_path, tmp_path / "**/*.tar"):
        assert [item.id for item in read_catalog(catalog)] == ["t/a", "x/s-000/a", "x/s-001/a"]
    items = list(read_catalog(tmp_path / "x/s-{000..001}.tar", text="{id}: {text}"))
    assert [(item.id, item.text) for item in items] == [
        ("s-000/a", "s-000/a: x/s-000"),
        ("s-001/a", "s-001/a: x/s-001"),
    ]


def test_a_ledger_that_fails_is_not_taken_for_damage(tmp_path):
    path = tar(tmp_path / "a.tar", {"a.png": link("a.png", "b.png")})

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(read_catalog(path, on_reject=full))


# damaged and hostile


def whole(path: Path) -> bytes:
    return tar(path, {f"{number}.png": png() for number in range(3)}).read_bytes()


@pytest.mark.parametrize(
    ("cut", "good"),
    [(100, 0), (512 + 20, 1), (1024, 1), (1024 + 100, 1), (2048, 2), (3072, 3), (3072 + 100, 3)],
)
def test_a_tar_that_was_cut_off_loses_nothing_in_silence(tmp_path, cut, good):
    assert len(png()) <= 512  # a header and a block each
    path = raw(tmp_path / "a.tar", whole(tmp_path / "a.tar")[:cut])
    items, rejects = read(path)
    assert len(items) == good
    assert [(id, name) for id, name, _ in rejects] == [("a.tar", "a.tar")]
    assert "damaged after " + (f"'{good - 1}.png'" if good else "the start") in rejects[0][2]
    with pytest.raises(CatalogError, match=r"a\.tar: not a tar file, or damaged after"):
        list(read_catalog(path))


def test_a_broken_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(whole(tmp_path / "a.tar"))
    data[1024:1030] = b"\xff" * 6
    items, rejects = read(raw(tmp_path / "a.tar", bytes(data)))
    assert [item.id for item in items] == ["0"]
    assert rejects == [("a.tar", "a.tar", "not a tar file, or damaged after '0.png' (a broken header)")]


@pytest.mark.parametrize("content", [b"", b"hello" * 1000, b"\x1f\x8b" + b"\0" * 600, png()])
def test_what_is_no_tar_is_a_reject(tmp_path, content):
    raw(tmp_path / "s/b.tar", content)
    tar(tmp_path / "s/a.tar", {"a.png": png()})
    items, rejects = read(tmp_path / "s")
    assert [item.id for item in items] == ["a/a"]
    assert [(id, name) for id, name, _ in rejects] == [("b", "b.tar")]


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("size", [-512, -1, -(2**62), 2**33 - 1])
def test_sizes_that_lead_back_or_far_beyond_end_the_shard(tmp_path, kind, size):
    first = tar(tmp_path / "a.tar", {"a.png": png()}).read_bytes()[:1024]
    path = raw(tmp_path / "a.tar", first + header("b.png", size, kind) + b"\0" * 10240)
    tracemalloc.start()
    items, rejects = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert items[0].id == "a"
    assert rejects[-1][0] == "a.tar"
    assert peak < 5_000_000


@pytest.mark.parametrize("size", ["-512", "-1024", "99999999999999"])
def test_sizes_in_extended_headers_are_not_trusted_either(tmp_path, size):
    header = tarfile.TarInfo("b.png")
    header.pax_headers = {"size": size}
    path = tar(tmp_path / "a.tar", {"a.png": png(), "b.png": header, "c.png": png()})
    items, rejects = read(path)
    assert items[0].id == "a"
    assert len(items) <= 2
    assert [id for id, *_ in rejects] == ["a.tar"]


def test_a_tar_that_changed_since_is_an_image_error(tmp_path):
    path = tar(tmp_path / "a.tar", {"a.png": png()})
    (item,) = read_catalog(path)
    raw(path, b"x" * 5000)
    with pytest.raises(ImageError, match="not an image"):
        open_image(item.image)
    path.unlink()
    with pytest.raises(ImageError, match="file not found"):
        open_image(item.image)


def test_members_are_not_kept_in_memory(tmp_path):
    path = tar(tmp_path / "a.tar", {f"{number:05}.png": b"x" for number in range(1000)}, tarfile.USTAR_FORMAT)
    items = read_catalog(path)
    next(items)
    tracemalloc.start()
    count = sum(1 for _ in items)
    kept = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 999
    assert kept / count < 250  # a tarfile.TarInfo alone takes more than a thousand bytes


def test_a_member_is_read_from_its_place(tmp_path):
    path = raw(tmp_path / "a.tar", b"0123456789")
    assert TarMember(path, "x", offset=3, size=4).read() == b"3456"
    assert Item(image=TarMember(path, "x", 3, 4)).image == TarMember(path, "x", 3, 4)


def test_members_that_are_passed_over_are_named(tmp_path):
    members = {"1.jpg": png(RED), "1.tga": b"x", "1.cls": b"7", "2.txt": b"t", "2.npy": b"x", "2.heic": b"x"}
    passed, rejected = [], []
    path = tar(tmp_path / "a.tar", members)
    items = read_catalog(path, on_reject=lambda id, *_: rejected.append(id), on_other=passed.append)
    assert [item.id for item in items] == ["1"]
    assert (passed, rejected) == (["1.tga", "2.npy"], ["2"])
