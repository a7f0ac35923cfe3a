"""The Dockerfiles: what they copy and install is there, and who runs them is not root."""

import configparser
import re

import pytest

from tests.launch.test_launch import LAUNCH, ROOT

IMAGES = sorted(LAUNCH.glob("*.Dockerfile"))


def instructions(path):
    """The words of each instruction, lines that go on joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [line.split() for line in text.replace("\\\n", " ").splitlines() if line]


def stages(path):
    """The instructions of each stage, which `FROM` begins."""
    found = []
    for words in instructions(path):
        if words[0] == "FROM":
            found.append([])
        found[-1].append(words)
    return found


images = pytest.mark.parametrize("path", IMAGES, ids=[path.stem for path in IMAGES])


def test_there_are_two():
    assert [path.stem for path in IMAGES] == ["cuda13", "tpu"]


@images
def test_what_is_copied_is_there(path):
    build, run = stages(path)
    copied = [words[1:-1] for words in build if words[0] == "COPY"]
    sources = [ROOT / source for words in copied for source in words]
    assert sources and [str(source) for source in sources if not source.exists()] == []
    # What a wheel is built of, and nothing of it comes from the repository later.
    assert {"dynadapt", "configs", "README.md", "LICENSE"} <= {s.name for s in sources}
    assert all("--from=build" in words for words in run if words[0] == "COPY")


@images
def test_what_is_installed_is_an_extra(path):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    text = path.read_text(encoding="utf-8")
    assert re.findall(r'pip install "\.\[(.*)\]"', text) == [path.stem]
    assert path.stem in config["options.extras_require"]
    assert text.count("RUN --mount=type=cache,target=/root/.cache/pip ") == text.count(
        "pip install"
    )


@images
def test_bases_have_a_version_and_one_is_supported(path):
    bases = {words[1] for words in instructions(path) if words[0] == "FROM"}
    (version,) = {re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+", base)[1] for base in bases}
    assert (3, 11) <= tuple(map(int, version.split("."))) <= (3, 13)


@images
def test_the_command_is_run_by_a_user_in_folders_of_its_own(path):
    run = {words[0]: words[1:] for words in stages(path)[-1]}
    assert run["ENTRYPOINT"] == ['["dynadapt"]'] and run["USER"] == ["$UID"]
    assert run["ARG"] == ["UID=1000"]
    folders = re.findall(r'"(/work/\w+)"', " ".join(run["VOLUME"]))
    assert folders == ["/work/data", "/work/runs", "/work/weights"]
    assert set(folders) <= set(run["RUN"])  # made for the user, whose volumes they become


@images
def test_the_document_builds_and_runs_it(path):
    document = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    head = re.sub(r"^# ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    build = f"docker build --file=launch/{path.name} --tag=dynadapt:{path.stem} ."
    assert build in document and build in head
    assert f"dynadapt:{path.stem} train --config=quickstart" in head
