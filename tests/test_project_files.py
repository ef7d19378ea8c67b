"""What people and machines read beside the code: version, citation, guides, forms, the sdist."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import tensorstate_callbacks

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "tensorstate_callbacks"
GITHUB = PROJECT / ".github"
REPOSITORY = "https://github.com/tensorstate-callbacks/tensorstate_callbacks"
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def project():
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def pinned(package):
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def test_the_version_stands_in_one_place():
    settings = project()
    assert "version" not in settings["project"]
    assert settings["project"]["dynamic"] == ["version"]
    attribute = "tensorstate_callbacks._version.__version__"
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": attribute}
    stated = f'"{tensorstate_callbacks.__version__}"'
    files = [path for path in PACKAGE.rglob("*.py") if stated in path.read_text()]
    assert [path.name for path in files] == ["_version.py"]
    assert "version" not in yaml.safe_load((PROJECT / "CITATION.cff").read_text())


def test_the_changelog_begins_with_this_version():
    title, heading = re.findall(r"^#.*", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)[:2]
    assert title == "# Changelog"
    assert heading.split()[:2] == ["##", tensorstate_callbacks.__version__]


def test_links_of_the_index_lead_to_the_repository_and_the_site():
    links = project()["project"]["urls"]
    site = yaml.load((PROJECT / "mkdocs.yml").read_text(), yaml.BaseLoader)["site_url"]  # noqa: S506
    assert links["Repository"] == REPOSITORY
    assert links["Documentation"] == site
    assert links["Issues"] == f"{REPOSITORY}/issues"
    assert links["Changelog"].endswith("/CHANGELOG.md")


def test_the_package_is_cited_with_both_papers():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["repository-code"] == REPOSITORY
    assert citation["license"] == project()["project"]["license"]
    assert "preferred-citation" not in citation
    first, second = citation["references"]
    assert first["identifiers"] == [{"type": "other", "value": "arXiv:2006.02909"}]
    assert (first["title"], first["year"]) == (
        "Assessing Intelligence in Artificial Neural Networks",
        2020,
    )
    assert second["doi"] == "10.3390/app131810286"
    assert (second["title"], second["year"]) == (
        "Assessing Efficiency in Artificial Neural Networks",
        2023,
    )
    for paper in (first, second):
        assert [author["family-names"] for author in paper["authors"]] == ["Schaub", "Hotaling"]


def test_pre_commit_runs_the_ruff_of_the_constraints_and_the_mypy_of_the_makefile():
    settings = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())
    hooks = {Path(repo["repo"]).name: repo for repo in settings["repos"]}
    assert hooks["ruff-pre-commit"]["rev"] == f"v{pinned('ruff')}"
    assert [hook["id"] for hook in hooks["ruff-pre-commit"]["hooks"]] == [
        "ruff-check",
        "ruff-format",
    ]
    (types,) = hooks["local"]["hooks"]
    assert types["entry"] == "make types"


def test_text_ends_in_one_newline_and_no_line_in_a_space():
    # What pre-commit's hooks would change, of the files that people write by hand.
    suffixes = {".cff", ".cpp", ".hpp", ".md", ".py", ".pyi", ".pyx", ".toml", ".txt", ".yml"}
    folders = [PROJECT / name for name in (".github", "tensorstate_callbacks", "tests", "docs")]
    paths = [*PROJECT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    paths = [path for path in paths if path.suffix in suffixes and path.name != "_counter.cpp"]
    assert len(paths) > 300
    wrong = [
        path.relative_to(PROJECT)
        for path in paths
        if (text := path.read_text()) and (text != text.rstrip("\n") + "\n" or " \n" in text)
    ]
    assert wrong == []


def test_dependabot_keeps_actions_and_pins():
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    assert [update["package-ecosystem"] for update in updates] == ["github-actions", "pip"]
    for update in updates:
        assert update["schedule"] == {"interval": "weekly"}
        (group,) = update["groups"].values()
        assert group == {"patterns": ["*"]}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_by_fields_that_github_knows(path):
    form = yaml.safe_load(path.read_text())
    assert form.keys() == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea"}
    names = [field["id"] for field in fields]
    assert len({*names}) == len(names)
    labels = [field["attributes"]["label"] for field in fields]
    assert len({*labels}) == len(labels)
    assert any(field.get("validations") == {"required": True} for field in fields)


def test_a_bug_and_a_wrong_number_come_with_the_installation():
    assert [path.stem for path in FORMS] == ["bug", "idea", "wrong_number"]
    for name in ("bug", "wrong_number"):
        form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
        (field,) = [field for field in form["body"] if field.get("id") == "installation"]
        assert "`python -m tensorstate_callbacks`" in field["attributes"]["label"]
        assert field["validations"] == {"required": True}


def test_security_problems_are_reported_privately():
    private = f"{REPOSITORY}/security/advisories/new"
    settings = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text())
    assert private in [link["url"] for link in settings["contact_links"]]
    assert private in (PROJECT / "SECURITY.md").read_text()


def test_the_guide_names_every_folder_of_the_package():
    guide = (PROJECT / "CONTRIBUTING.md").read_text()
    rows = [line for line in guide.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)/`", row.split("|")[1])}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert named == folders


def test_what_the_guide_tells_to_run_is_there():
    guide = (PROJECT / "CONTRIBUTING.md").read_text()
    targets = {word for text in re.findall(r"make ([a-z -]+)", guide) for word in text.split()}
    for target in sorted(word for word in targets if word.startswith(("test", "lint", "docs"))):
        command = ["make", "--dry-run", "--no-print-directory", target]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Nothing to be done" not in done.stdout
    for name in re.findall(r"`?((?:tests|docs|\.github)/[\w/.]+\.\w+)", guide):
        assert (PROJECT / name).exists(), name


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    source.mkdir()
    for name in ("tensorstate_callbacks", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, source / name, ignore=ignore)
    native = source / "tensorstate_callbacks" / "_native"
    for path in (native / "_counter.cpp", native / "_counter.so", source / "tests" / "built.pyc"):
        path.touch()
    for path in PROJECT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    build = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", build, folder]
    subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        return [name.partition("/")[2] for name in opened.getnames()]


def test_the_sdist_is_all_that_a_wheel_and_its_tests_are_made_of(sdist):
    native = PACKAGE / "_native"
    needed = [*native.glob("*.hpp"), *native.glob("*.py*"), *PACKAGE.rglob("*.html")]
    needed += [path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts]
    needed += [*PROJECT.glob("tests/*.py"), *PROJECT.glob("tests/native/*.py")]
    needed += [PROJECT / "setup.py", PROJECT / "pyproject.toml", PROJECT / "README.md"]
    needed += [PROJECT / "LICENSE", PROJECT / "CITATION.cff", PROJECT / "CONTRIBUTING.md"]
    names = {str(path.relative_to(PROJECT)) for path in needed}
    assert "tests/native/installed.py" in names
    assert names - {*sdist} == set()


def test_the_sdist_holds_nothing_that_was_built(sdist):
    built = (".so", ".pyd", ".pyc", "/_counter.cpp")
    assert [name for name in sdist if name.endswith(built)] == []
