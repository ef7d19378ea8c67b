"""What `python -m tensorstate_callbacks report` can't read or write is told in one line."""

import json
import os
import struct
import sys
from pathlib import Path

import pytest
from test_runs import logged_run, series, write_run
from test_whole_files import no_file_longer_than

from tensorstate_callbacks.__main__ import main


def refused(capsys, *words):
    code = main(["report", *map(str, words)])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    return code, said.err


def test_what_is_no_run_is_refused_with_the_way_out(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere", "0" * 32):
        code, words = refused(capsys, name)
        assert code == 1
        assert f"{name!r} is neither a folder nor an MLflow run" in words
        assert "runs:/<id>" in words
    code, words = refused(capsys, tmp_path)
    assert code == 1
    assert "no event file of TensorBoard" in words
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_no_figure_is_refused_before_anything_is_read(capsys, tmp_path):
    code, words = refused(capsys, "nowhere", "--output", "run.docx")
    assert code == 2
    assert "run.docx: a figure ends in .png, .svg, .pdf, .html, .htm" in words
    code, words = refused(capsys, "nowhere", "--output", tmp_path / "no" / "run.png")
    assert code == 2
    assert "there is no folder" in words


def test_the_run_must_be_named(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["report"])
    assert exit_.value.code == 2
    assert "required: RUN" in capsys.readouterr().err


def shown(capsys, *words):
    """Run the command on what has one readable run, and return its exit code and its error."""
    code = main(["report", *map(str, words)])
    said = capsys.readouterr()
    assert "efficiency" in said.out
    assert " 0.2500 " in said.out.replace("\n", " ")
    return code, said.err


def event_file(folder, name="events.out.tfevents.1"):
    """Write a run of two efficiencies; return its bytes."""
    write_run(folder, {"val_efficiency": series(0.25, 0.25)})
    (file,) = folder.iterdir()
    file.rename(folder / name)
    return (folder / name).read_bytes()


def record(data):
    """Return a record of an event file."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", len(data))
    checksums = struct.pack("<I", masked_crc32c(length)), struct.pack("<I", masked_crc32c(data))
    return length + checksums[0] + data + checksums[1]


def endless():
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", 1 << 62)
    return length + struct.pack("<I", masked_crc32c(length)) + b"x"


def flipped(data):
    return data[:-6] + bytes([data[-6] ^ 255]) + data[-5:]


DAMAGES = {
    "cut short": lambda data: data[:-5],
    "cut in a head": lambda data: data + data[:5],
    "a flipped byte": flipped,
    "other bytes": lambda data: b"\x00\xff" * 500,
    "text": lambda data: b"<html> of somebody else's",
    "no event": lambda data: data + record(b"\xff\xff\xff\x01"),
    "an endless record": lambda data: data + endless(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_event_file_is_one_line_and_other_runs_are_read(capsys, tmp_path, damage):
    data = event_file(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    bad = tmp_path / "bad" / "events.out.tfevents.2"
    write_run(tmp_path / "other", {"loss": series(1.0)})
    (other,) = (tmp_path / "other").iterdir()
    bad.write_bytes(damage(other.read_bytes()))
    code, error = shown(capsys, tmp_path)
    assert code == 1
    assert error.count("\n") == 1
    assert error.startswith("error: not everything could be read: ")
    assert f"{bad} (" in error
    assert "at byte" in error
    # Alone, it is the reason why there is nothing to show.
    code, error = refused(capsys, tmp_path / "bad")
    assert code == 1
    assert error.count("\n") == 1
    assert f"Not read: {bad} (" in error
    # What stands before the damage is shown.
    bad.write_bytes(damage(data + record(b"")))
    if bad.read_bytes().startswith(data[:-5]):
        assert shown(capsys, tmp_path / "bad")[0] == 1


def test_a_number_that_was_altered_is_not_shown(capsys, tmp_path):
    data = event_file(tmp_path / "run")
    at = data.index(struct.pack("<f", 0.25))
    altered = data[:at] + struct.pack("<f", 0.75) + data[at + 4 :]
    (tmp_path / "run" / "events.out.tfevents.1").write_bytes(altered)
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "0.7500" not in said.out
    assert "damaged at byte" in said.err


@pytest.mark.parametrize("kind", ["pipe", "dangling link", "forbidden folder"])
def test_what_is_no_readable_file_is_one_line_and_other_runs_are_read(
    capsys, tmp_path, kind, monkeypatch
):
    event_file(tmp_path / "good")
    path = tmp_path / "bad" / "events.out.tfevents.2"
    path.parent.mkdir()
    if kind == "pipe":
        getattr(os, "mkfifo", pytest.skip)(path)
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "none")
    else:
        path = path.parent
        scandir = os.scandir

        def forbid(folder):
            if Path(folder) == path:
                raise PermissionError(13, "Permission denied", str(folder))
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", forbid)
    code, error = shown(capsys, tmp_path)
    assert code == 1
    assert error.count("\n") == 1
    assert f"{path} (" in error


def test_a_folder_named_like_an_event_file_is_a_folder(capsys, tmp_path):
    event_file(tmp_path / "run.tfevents.1")
    (tmp_path / "run.tfevents.1" / "tfevents").mkdir()
    assert shown(capsys, tmp_path) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are no text")
def test_names_that_are_no_text_are_shown_as_bytes(capsys, tmp_path):
    event_file(tmp_path / "run", os.fsdecode(b"\xfe.tfevents"))
    folder = tmp_path / os.fsdecode(b"r\xffn")
    (tmp_path / "run").rename(folder)
    assert shown(capsys, folder, "--output", tmp_path / "a.html") == (0, "")
    assert r"r\xffn, keys val_aiq" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert shown(capsys, tmp_path, "--output", folder / "a.png") == (0, "")
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    (folder / os.fsdecode(b"\xfe.tfevents")).write_bytes(b"damaged")
    assert r"r\xffn/\xfe.tfevents (" in refused(capsys, folder)[1]
    (folder / "empty").mkdir()
    assert r"there is no event file of TensorBoard in '" in refused(capsys, folder / "empty")[1]


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.pdf", "a.html"])
def test_an_output_that_cannot_be_written_is_one_line_and_keeps_what_is_there(
    capsys, tmp_path, name
):
    event_file(tmp_path / "run")
    output = tmp_path / name
    output.write_bytes(b"before")
    with no_file_longer_than(100):
        code, error = shown(capsys, tmp_path / "run", "--output", output)
    assert code == 1
    assert error.count("\n") == 1
    assert "File too large" in error
    assert output.read_bytes() == b"before"
    output.unlink()
    output.mkdir()
    code, error = shown(capsys, tmp_path / "run", "--output", output)
    assert code == 1
    assert error == f"error: {output}: Is a directory\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "run"])


def test_names_that_no_file_can_have_are_one_line(capsys, tmp_path):
    event_file(tmp_path / "run")
    for words in (
        ["n" * 300],
        [tmp_path / "run", "--output", tmp_path / "no" / ("n" * 300 + ".png")],
    ):
        code, error = refused(capsys, *words)
        assert code in (1, 2)
        assert error.count("\n") == 1
    code, error = shown(capsys, tmp_path / "run", "--output", tmp_path / ("n" * 300 + ".png"))
    assert code == 1
    assert "too long" in error


@pytest.mark.filterwarnings("ignore::Warning")
def test_a_damaged_table_of_mlflow_is_one_line_and_the_metrics_are_shown(
    capsys, tmp_path, mlflow_client
):
    from reports import report as made_report

    run_id = logged_run(mlflow_client, [made_report(epoch=0)])
    columns = list(made_report(epoch=0).to_dicts()[0])
    row = list(made_report(epoch=0).to_dicts()[0].values())
    wrong = [text if isinstance(text, str) else "text" for text in row]
    contents = [
        "[" * 100_000,
        "{",
        "[]",
        '{"columns": [], "data": [[]]}',
        '{"columns": ["name"], "data": [["a"]]}',
        json.dumps({"columns": columns, "data": [row[:-1]]}),
        json.dumps({"columns": columns, "data": [wrong]}),
        json.dumps({"columns": columns, "data": [[True] * len(row)]}),
    ]
    for number, content in enumerate(contents):
        file = tmp_path / f"{number}_layers.json"
        file.write_text(content)
        mlflow_client.log_artifact(run_id, str(file), "efficiency")
    code = main(["report", f"runs:/{run_id}", "--tracking-uri", mlflow_client.tracking_uri])
    said = capsys.readouterr()
    assert code == 1
    assert "0.4677" in said.out
    assert said.err.count("\n") == 1
    assert "table efficiency/0_layers.json of run" in said.err
    assert "and 5 more" in said.err


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("https://me:S3cret/T0p@host:5000", None),
        ("http://me:S3cret#T0p@host", ValueError("no port 'S3cret'")),
        ("http://me:S3cret%2FT0p@host", OSError("no host me:S3cret/T0p")),
        ("postgresql://db/mlflow?password=S3cret/T0p", OSError("x\npassword=S3cret/T0p\nT0p")),
        ("mssql://?odbc_connect=UID%3Dme%3BPWD%3DS3cret%2FT0p", OSError("PWD=S3cret/T0p;x")),
    ],
)
def test_no_error_shows_a_password(capsys, monkeypatch, address, error):
    mlflow = pytest.importorskip("mlflow")

    class Client:
        def __init__(self, tracking_uri):
            raise error or mlflow.exceptions.MlflowException(f"API request to {tracking_uri}/x")

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    code, words = refused(capsys, "runs:/" + "0" * 32, "--tracking-uri", address)
    assert code == 1
    assert words.count("\n") == 1
    assert "S3cret" not in words
    assert "T0p" not in words
    assert "--tracking-uri says where else" in words
