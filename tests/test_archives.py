"""Archives of runs: the same bytes each time, complete for a stranger, harmless from anybody."""

import json
import random
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

import conescope as cs
from conescope.cli import main
from conescope.errors import StoreError
from conescope.experiments.archives import importing
from conescope.experiments.archives.importing import import_run
from conescope.experiments.archives.layout import CRATE, is_member
from conescope.experiments.branches import branch_recipe
from conescope.experiments.session import run_experiment
from conescope.experiments.verifying.verdicts import Verdict
from conescope.runs.store import Folder
from conescope.runs.writer import RunWriter
from conescope.training.recipe_reading import load_recipe

TINY = [
    "--model.name=mlp", "--model.width=0.2", "--training.steps=20", "--training.batch_size=16",
    "--training.evaluate=0, every 10", "--probe.size=8", "--kernel.when=0, every 10",
    "--snapshots.keep=0, every 10", "--threads=1",
]  # fmt: skip


class Silent:
    def begin(self, name, step, total):
        pass

    def advance(self, step):
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("archived") / "run"
    assert run_experiment(load_recipe("digits", TINY), path, command="test")
    return path


@pytest.fixture(scope="module")
def archive(made):
    out = made.parent / "run.zip"
    assert main(["export", str(made), "--weights", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


def tree(path):
    return {f.relative_to(path): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def unpack(archive, out):
    import_run(archive, out, Silent())
    return out


def members(archive):
    with zipfile.ZipFile(archive) as opened:
        return {info.filename: opened.read(info) for info in opened.infolist()}


def packed(path, files, change=lambda info: None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            change(info)
            opened.writestr(info, data)
    return path


def redescribed(files, **extra):
    """Members whose description fits them again, as somebody would write who forges an archive."""
    import hashlib

    crate = json.loads(files[CRATE])
    held = {name: data for name, data in files.items() if name != CRATE} | extra
    graph = [entity for entity in crate["@graph"] if entity["@type"] != "File"]
    graph += [
        {
            "@id": name,
            "@type": "File",
            "contentSize": str(len(data)),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name, data in held.items()
    ]
    return {CRATE: json.dumps({"@graph": graph}).encode(), **held}


def attempted(archive, out):
    """The message of a refusal; empty if the archive is unpacked."""
    try:
        unpack(archive, out)
    except StoreError as error:
        return str(error)
    return ""


def refused(archive, tmp_path, match):
    out = tmp_path / "out"
    with pytest.raises(StoreError, match=match) as error:
        unpack(archive, out)
    assert "\n" not in str(error.value)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_the_same_run_gives_the_same_bytes_here_and_elsewhere(made, archive, tmp_path):
    again = tmp_path / "again.zip"
    assert main(["export", str(made), "--weights", "--out", str(again)]) == 0
    assert again.read_bytes() == archive.read_bytes()
    copy = unpack(archive, tmp_path / "copy")
    third = tmp_path / "third.zip"
    assert main(["export", str(copy), "--weights", "--out", str(third)]) == 0
    assert third.read_bytes() == archive.read_bytes()


def test_an_imported_run_is_the_run(made, archive, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert main(["import", str(archive), "--out", str(out)]) == 0
    assert f"run: {out}" in capsys.readouterr().out
    before, after = tree(made), tree(out)
    before.pop(Path("lock"), None)
    assert {name.name for name in after.keys() - before.keys()} == {CRATE, "numbers.json"}
    assert {name: after[name] for name in before} == before
    assert cs.load_run(out).series.steps == (0, 10, 20)


def test_a_stranger_verifies_the_archive(archive, capsys):
    done = cs.verify(archive, share=1.0)
    assert {check.verdict for check in done.checks} == {Verdict.EQUAL}
    assert "numbers.json, all numbers and figures' data" in {c.subject for c in done.checks}
    assert main(["verify", str(archive)]) == 0


def test_snapshots_that_are_left_out_are_not_lost(made, tmp_path, capsys):
    out = tmp_path / "small.zip"
    assert main(["export", str(made), "--out", str(out)]) == 0
    assert "snapshots, " in capsys.readouterr().out
    assert not any(name.startswith("snapshots/") for name in members(out))
    done = cs.verify(out, share=1.0)
    assert done.held
    left_out = [check for check in done.checks if check.verdict == Verdict.UNVERIFIED]
    assert {check.detail for check in left_out} == {"the archive was made without it"}
    assert sum(check.group == "kernels" for check in done.checks) >= 3  # trained from the seed
    copy = unpack(out, tmp_path / "copy")
    (copy / CRATE).unlink()
    assert not cs.verify(copy).held  # now they are lost


def test_a_kernel_cannot_be_left_out(archive, tmp_path):
    copy = unpack(archive, tmp_path / "copy")
    crate = json.loads((copy / CRATE).read_bytes())
    kernel = next(e for e in crate["@graph"] if e["@id"] == "kernels/00000010.safetensors")
    kernel["@id"], kernel["@type"] = "#left-out/kernels/00000010.safetensors", "CreativeWork"
    (copy / CRATE).write_text(json.dumps(crate))
    (copy / "kernels/00000010.safetensors").unlink()
    assert not cs.verify(copy).held


def test_branches_come_along_if_asked(run, tmp_path):
    child = run / "branches" / "child"
    assert run_experiment(branch_recipe(run, 10), child, command="test")
    alone, both = tmp_path / "alone.zip", tmp_path / "both.zip"
    assert main(["export", str(run), "--out", str(alone)]) == 0
    assert main(["export", str(run), "--branches", "--weights", "--out", str(both)]) == 0
    assert not any(name.startswith("branches/") for name in members(alone))
    assert "branches/child/origin.safetensors" in members(both)
    done = cs.verify(both, branches=True, share=1.0)
    assert {check.verdict for check in done.checks} == {Verdict.EQUAL}
    assert any(check.subject.startswith("child: origin") for check in done.checks)


def test_the_metadata_are_an_ro_crate(archive):
    held = members(archive)
    assert next(iter(held)) == CRATE
    crate = json.loads(held[CRATE])
    assert crate["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    graph = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(graph) == len(crate["@graph"])
    assert all({"@id", "@type"} <= entity.keys() for entity in crate["@graph"])
    assert graph[CRATE]["about"] == {"@id": "./"}
    assert graph[CRATE]["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    root = graph["./"]
    assert root["@type"] == "Dataset"
    assert {"name", "description", "datePublished"} <= root.keys()
    assert {part["@id"] for part in root["hasPart"]} == held.keys() - {CRATE}
    for part in root["hasPart"]:
        assert graph[part["@id"]]["@type"] == "File"
        assert graph[part["@id"]]["contentSize"] == str(len(held[part["@id"]]))


def test_an_archive_cut_anywhere_is_refused(archive, tmp_path):
    data, cut = archive.read_bytes(), tmp_path / "cut.zip"
    for length in [0, 1, 30, *(len(data) * n // 20 for n in range(1, 20)), len(data) - 1]:
        cut.write_bytes(data[:length])
        refused(cut, tmp_path, "no whole zip archive|damaged")


def test_an_archive_with_a_changed_byte_is_refused_or_harmless(archive, tmp_path):
    data, chance = archive.read_bytes(), random.Random(0)
    whole = tree(unpack(archive, tmp_path / "whole"))
    headers = len(data) - 3000
    places = [chance.randrange(len(data)) for _ in range(150)]
    places += [chance.randrange(headers, len(data)) for _ in range(150)]
    changed = tmp_path / "changed.zip"
    for number, place in enumerate(places):
        other = bytearray(data)
        other[place] ^= 1 << chance.randrange(8)
        changed.write_bytes(other)
        out = tmp_path / f"out{number}"
        message = attempted(changed, out)
        assert "\n" not in message
        assert message or tree(out) == whole
        assert not (message and out.exists())
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors", "/tmp/evil", "kernels/../../evil.safetensors", "evil.py", "lock",
        "branches/../kernels/00000000.safetensors", "C:\\evil", "kernels\\00000000.safetensors",
        "figures/..png", "figures/.png", "figures/a/b.png", "kernels/00000000.safetensors\n",
        "branches/a/branches/b/branches/c/branches/d/branches/e/journal.jsonl", "", "figures/",
        "kernels/٠٠٠٠٠٠٠٠.safetensors",
    ],
)  # fmt: skip
def test_a_member_with_a_foreign_name_is_refused(archive, tmp_path, name):
    assert not is_member(name)
    files = redescribed(members(archive), **{name: b"evil"}) if name else {"": b"x"}
    refused(packed(tmp_path / "evil.zip", files), tmp_path, "evil.zip")
    assert not (tmp_path.parent / "evil.safetensors").exists()


def test_links_and_devices_are_refused(archive, tmp_path):
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR):

        def change(info, kind=kind):
            if info.filename == "recipe.yaml":
                info.external_attr = (kind | 0o777) << 16

        evil = packed(tmp_path / "evil.zip", members(archive), change)
        refused(evil, tmp_path, "link or device")


def test_bombs_are_refused(archive, tmp_path):
    files = redescribed(members(archive), **{"report.html": bytes(50_000_000)})
    evil = packed(tmp_path / "evil.zip", files, compression=zipfile.ZIP_DEFLATED)
    assert evil.stat().st_size < 1_000_000
    refused(evil, tmp_path, "compressed or encrypted")


def test_a_member_that_is_there_twice_is_refused(archive, tmp_path):
    files = members(archive)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as opened:
        for name, data in files.items():
            opened.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            opened.writestr("journal.jsonl", b"")
    refused(tmp_path / "evil.zip", tmp_path, "twice")


@pytest.mark.parametrize(
    "crate",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"@graph": 3}', b'{"@graph": [3]}',
        b'{"@graph": [{"@id": "./"}]}', b'{"@graph": [{"@id": {}, "@type": "File"}]}',
        b'{"@graph": [{"@id": "journal.jsonl", "@type": "File", "sha256": 1, "contentSize": 1}]}',
        b'{"@graph": [{"@id": "journal.jsonl", "@type": "File", "contentSize": "' + b"9" * 9999
        + b'", "sha256": ""}]}',
    ],
)  # fmt: skip
def test_metadata_of_another_kind_are_refused(archive, tmp_path, crate):
    evil = packed(tmp_path / "evil.zip", {**members(archive), CRATE: crate})
    refused(evil, tmp_path, CRATE)


def test_contents_have_to_be_as_declared(archive, tmp_path):
    files = members(archive)
    longer = {**files, "recipe.yaml": files["recipe.yaml"] + b"\n"}
    refused(packed(tmp_path / "a.zip", longer), tmp_path, "does not hold 'recipe.yaml'")
    other = {**files, "recipe.yaml": b"x" * len(files["recipe.yaml"])}
    refused(packed(tmp_path / "b.zip", other), tmp_path, "checksum does not match")
    fewer = {name: data for name, data in files.items() if name != "recipe.yaml"}
    refused(packed(tmp_path / "c.zip", fewer), tmp_path, "does not hold 'recipe.yaml'")
    without = {name: data for name, data in fewer.items() if name != CRATE}
    refused(packed(tmp_path / "d.zip", without), tmp_path, CRATE)
    no_journal = redescribed({n: d for n, d in files.items() if n != "journal.jsonl"})
    refused(packed(tmp_path / "e.zip", no_journal), tmp_path, "no run")


def test_a_forged_archive_is_unpacked_but_not_verified(archive, tmp_path):
    files = members(archive)
    files["numbers.json"] = files["numbers.json"].replace(
        b'"velocity": [\n  ', b'"velocity": [\n  1'
    )
    evil = packed(tmp_path / "forged.zip", redescribed(files))
    done = cs.verify(evil)
    assert {c.group for c in done.checks if c.verdict == Verdict.DIFFERENT} == {"derived"}


def test_nothing_is_overwritten(archive, made, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert main(["import", str(archive), "--out", str(tmp_path / "full")]) == 1
    assert main(["export", str(made), "--out", str(archive)]) == 1
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert main(["import", str(archive), "--out", str(tmp_path / "link")]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert all("exists already" in line for line in errors)
    assert tree(tmp_path / "full") == {Path("thesis.tex"): b"years of work"}
    (tmp_path / "empty").mkdir()
    assert main(["import", str(archive), "--out", str(tmp_path / "empty")]) == 0


def test_an_archive_that_does_not_fit_is_refused_first(archive, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: usage)
    refused(archive, tmp_path, "has 10 left")


def test_an_interrupt_leaves_nothing_behind(archive, made, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Silent, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("conescope.cli.progress.ProgressBar.advance", interrupted)
    assert main(["export", str(made), "--out", str(tmp_path / "x.zip")]) == 130
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_refused(tmp_path, capsys):
    for name in ("absent.zip", "."):
        assert main(["import", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1


def test_only_a_whole_run_at_rest_is_exported(run, tmp_path, capsys):
    words = ["export", str(run), "--out", str(tmp_path / "x.zip")]
    with Folder(run).owned():
        assert main(words) == 1
    assert "a process is working on" in capsys.readouterr().err
    (run / "snapshots/00000010.safetensors").unlink()
    assert main(words) == 0  # without weights nothing is missing
    assert main([*words[:-1], str(tmp_path / "y.zip"), "--weights"]) == 1
    assert "is missing" in capsys.readouterr().err
    (run / "kernels/00000010.safetensors").write_bytes(b"short")
    assert main([*words[:-1], str(tmp_path / "z.zip")]) == 1
    assert "damaged" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "w.zip")]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_a_link_is_not_followed_into_an_archive(run, tmp_path, capsys):
    (tmp_path / "secret").write_text("password")
    (run / "report.html").symlink_to(tmp_path / "secret")
    assert main(["export", str(run), "--out", str(tmp_path / "x.zip")]) == 1
    assert "is a link" in capsys.readouterr().err


def test_results_of_lazy_are_not_left_out_in_silence(run, tmp_path, capsys):
    with RunWriter(run) as writer:
        writer.write_result("seed-0/result.safetensors", b"numbers")
    assert main(["export", str(run), "--out", str(tmp_path / "x.zip")]) == 1
    assert "holds results of 'conescope lazy'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.zip").exists()
    (run / "seed-0" / "result.safetensors").write_bytes(b"other")
    assert main(["verify", str(run), "--share=0.1"]) == 1
    assert "seed-0/result.safetensors" in " ".join(capsys.readouterr().out.split())
