"""The tutorials run from top to bottom as they stand there, and print what they show.

After a change of what is printed or drawn, `python tests/page_runs.py docs/tutorials/*.md` writes
outputs and pictures anew.
"""

import re
from pathlib import Path

import pytest
from page_runs import differences, picture_of, read_blocks, run_page, write_page

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
PAGES = sorted(path.name for path in TUTORIALS.glob("*.md"))
NEEDED = {"keras": "tensorflow", "lightning": "pytorch_lightning", "pytorch": "torch"}


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.parametrize("name", PAGES)
def test_page_prints_and_draws_what_it_shows(name: str, tmp_path: Path) -> None:
    page = TUTORIALS / name
    pytest.importorskip(NEEDED[page.stem], reason="the page's framework isn't installed")
    text = page.read_text(encoding="utf-8")
    run = run_page(page, tmp_path)
    blocks = read_blocks(text)
    # A broken fence would leave one out, and an output that follows no code isn't compared.
    assert len(run.outputs) == len(blocks) == text.count("```python\n") > 5
    assert sum(map(bool, run.outputs)) == text.count("```text\n")
    for block, printed in zip(blocks, run.outputs, strict=True):
        found = differences(block.output or "", printed, varies=block.varies)
        assert not found, f"{name}, line {block.line}: {found}"
    shown = set(re.findall(r"!\[[^]]+\]\(\.\./images/([\w.]+)\)", text))
    assert shown == {picture_of(page, picture).name for picture in run.pictures}
    for picture, content in run.pictures.items():
        (width, height), stored = size_of(content), picture_of(page, picture).read_bytes()
        # Labels of numbers may be a little wider.
        assert size_of(stored) == (pytest.approx(width, rel=0.05), pytest.approx(height, rel=0.05))


TABLE = """\
layer   neurons   states  distinct  efficiency  ceiling
conv_1        8  144,000       100      0.4537   1.0000
conv_2       16   25,000     1,397      0.5032   0.9131
efficiency 0.4778, accuracy 0.9340
"""
EPOCHS = """\
epoch  accuracy     aIQ
    1    0.8160  0.6560
    2    0.8950  0.7179
best aIQ 0.7179 in epoch 2
"""


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (TABLE, "0.4537", "0.4937"),
        (TABLE, "100", " 80"),
        (TABLE, "0.9340", "0.9010"),
        (EPOCHS, "best", "    3    0.9000  0.7200\nbest"),
        (EPOCHS, "in epoch 2", "in epoch 5"),
        ("stopped after 7 epochs\n", "7", "9"),
        ("layer  neurons  rate bound\na      8      0.5123\n", "0.5", "0.6"),
    ],
)
def test_what_depends_on_the_processor_may_differ_a_little(text: str, old: str, new: str) -> None:
    assert differences(text, text.replace(old, new)) == []


def test_numbers_that_vary_are_not_compared() -> None:
    text = "dead since epoch 1: 23\ndead since epoch 3: 1\nin all 24\n"
    new = "dead since epoch 1: 20\nin all 20\n"
    assert differences(text, new) != []
    assert differences(text, new, varies=True) == []
    assert differences(text, new.replace("in all", "all"), varies=True) != []


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (TABLE, "0.4537", "0.5237"),
        (TABLE, "      100", "1,000,000"),
        (TABLE, "144,000", "144,001"),
        (TABLE, "0.9131", "0.9132"),
        (TABLE, "  16", "  17"),
        (TABLE, "conv_1", "conv_3"),
        (TABLE, "accuracy", "accurate"),
        (TABLE, "conv_2       16   25,000     1,397      0.5032   0.9131\n", ""),
        (EPOCHS, "best", "    3    0.9000  0.7200\n" * 6 + "best"),
        (EPOCHS, "0.7179\nbest", "0.6179\nbest"),
        (EPOCHS, "best aIQ 0.7179 in epoch 2\n", ""),
        ("11 of the 64 neurons\n", "64", "63"),
        ("0.1557\n", "0.1557", "0.1557\n0.1557"),
    ],
)
def test_what_does_not_must_be_as_it_was(text: str, old: str, new: str) -> None:
    assert differences(text, text.replace(old, new)) != []


def test_outputs_and_pictures_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("page_runs.IMAGES", tmp_path)
    page = tmp_path / "page.md"
    silent = "```python\nx = 2\nopen('a.png', 'wb').write(b'drawn')\n```\n"
    more, same = "```python\nprint(x + 1)\n```\n", "```python\nprint(x)\n```\n"
    page.write_text(f"Above.\n\n{silent}\n{more}\n```text\n4\n```\n\n{same}\nBelow.\n")
    write_page(page)
    assert page.read_text() == (
        f"Above.\n\n{silent}\n{more}\n```text\n3\n```\n\n{same}\n```text\n2\n```\n\nBelow.\n"
    )
    assert (tmp_path / "tutorial_page_a.png").read_bytes() == b"drawn"


def test_a_block_that_fails_is_told_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Above.\n\n```python\nx = 2\nprint(y)\n```\n")
    with pytest.raises(RuntimeError, match=r'File "page.md", line 5.*\n(.*\n)*NameError'):
        run_page(page, tmp_path)
