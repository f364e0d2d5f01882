from index.encoding.rejects import Reject, kinds_of, read_rejects, write_rejects


def test_what_is_written_is_read_again(tmp_path):
    rejects = [Reject("a\u2028b", "x/ü.png", 'no "image"'), Reject("2", None, "neither\nnor")]
    write_rejects(tmp_path / "r.jsonl", rejects[:1])
    write_rejects(tmp_path / "r.jsonl", rejects[1:])
    assert list(read_rejects(tmp_path / "r.jsonl")) == rejects
    assert (tmp_path / "r.jsonl").read_bytes().count(b"\n") == 2


def test_text_that_cannot_be_written_is_escaped():
    reject = Reject("x\ud800", "caf\udce9.png", "bad \udcff")
    assert (reject.id, reject.path, reject.reason) == ("x\\ud800", "caf\\udce9.png", "bad \\udcff")
    assert str(reject) == "'x\\\\ud800' (caf\\udce9.png): bad \\udcff"


def test_reasons_are_counted_by_kind(tmp_path):
    reasons = ["file not found"] * 3 + [f"{n}×{n + 1} pixels, more than the limit of 64,000" for n in range(5)]
    reasons += ["near-duplicate of 'g 1'", "near-duplicate of 'g2'", "odd"]
    write_rejects(tmp_path / "r.jsonl", (Reject(str(i), None, reason) for i, reason in enumerate(reasons)))
    assert [(kind.reason, kind.count, kind.first.id) for kind in kinds_of(tmp_path / "r.jsonl")] == [
        ("…×… pixels, more than the limit of …", 5, "3"),
        ("file not found", 3, "0"),
        ("near-duplicate of …", 2, "8"),
        ("odd", 1, "10"),
    ]
    assert [(kind.reason, kind.count) for kind in kinds_of(tmp_path / "r.jsonl", last=2)] == [
        ("near-duplicate of 'g2'", 1),
        ("odd", 1),
    ]


def test_what_a_kind_has_in_common_is_kept(tmp_path):
    write_rejects(tmp_path / "r.jsonl", [Reject(id, None, "more pixels than the limit of 64000000") for id in "ab"])
    assert [(kind.reason, kind.count) for kind in kinds_of(tmp_path / "r.jsonl")] == [
        ("more pixels than the limit of 64000000", 2)
    ]
