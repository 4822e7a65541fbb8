"""The documentation: its Python examples run, and the commands, options, files and links that it names exist."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
FILES = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "trainers").glob("*.md"))
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
GUIDE = {name: text for name, text in PAGES.items() if name != "CHANGELOG.md"}  # its entries name what was there at the time
GUIDE["cls2det demo"] = (ROOT / "cls2det" / "study" / "demo.py").read_text()  # it ends with two commands
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    name for name, text in GUIDE.items() if "```python" in text and "docs/trainers/" not in name
]  # test_examples.py has those


def test_there_are_pages():
    assert "README.md" in EXAMPLES and "docs/own-trainer.md" in EXAMPLES, sorted(PAGES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name):
    """The blocks of a page one after another, as a reader would paste them into one file."""
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    for match in FENCED.finditer(PAGES[name]):
        language, code = match.groups()
        if language != "python":
            continue
        line = PAGES[name][: match.start()].count("\n") + 1
        try:  # empty lines before the code, so that a traceback shows the line of the page
            exec(compile("\n" * line + code, ROOT / name, "exec"), namespace)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] in ("cls2det", "cls2det_ops"):
                raise
            pytest.skip(f"{name} needs {error.name}")


def commands(text: str) -> list[str]:
    """What a page tells its reader to run: lines of blocks and code within sentences, without comments."""
    text = text.replace("\\\n", " ")
    blocks = [line for match in FENCED.finditer(text) if match[1] != "python" for line in match[2].splitlines()]
    indented = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    inline = re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    return [line.split(" #")[0].strip() for line in (*blocks, *indented, *inline)]


def named(pattern: str) -> list[tuple[str, str]]:
    """(page, command) of all pages whose commands begin so."""
    return [(name, line) for name, text in GUIDE.items() for line in commands(text) if re.match(pattern, line)]


@functools.cache
def help_of(*words: str) -> str:
    """The help text of a command, its options with ``_`` for ``-``."""
    from cls2det.cli import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code in (0, None)
    return output.getvalue().replace("-", "_")


def has_option(text: str, option: str) -> bool:
    return re.search(re.escape(option.replace("-", "_")) + r"(?![\w.])", text) is not None


def test_commands_and_options_exist():
    pytest.importorskip("lightning")
    wrong = []
    for name, line in named(r"(torchrun .* -m )?cls2det [a-z]"):
        command, *words = line[line.index("cls2det ") :].split()[1:]
        if not re.search(rf"\b{command}\b", help_of()):
            wrong.append(f"{name}: no command {command}: {line}")
            continue
        options = {word.split("=")[0] for word in words if word.startswith("--")} - {"--help"}
        wrong += [f"{name}: no {option}: {line}" for option in sorted(options) if not has_option(help_of(command), option)]
    assert not wrong, "\n".join(wrong)


OF_OTHER_PROGRAMS = ("--backends", "--no-build-isolation", "--bench-out", "--bench-steps", "--seconds")


def test_options_in_sentences_exist():
    pytest.importorskip("lightning")
    known = "\n".join(
        help_of(command) for command in ("teacher", "bank", "distill", "evaluate", "pretrain", "sweep", "recipes")
    )
    wrong = []
    for name, line in named(r"--[a-z]"):
        options = [word for word in line.split() if word.startswith("--") and word not in OF_OTHER_PROGRAMS]
        wrong += [f"{name}: no {option}" for option in options if not has_option(known, option)]
    assert not wrong, "\n".join(wrong)


def test_recipes_exist():
    pytest.importorskip("torchvision")
    from cls2det.recipes import find_recipe

    for _, line in named(r"(torchrun .* -m )?cls2det "):
        for recipe in re.findall(r"--(?:config|recipe) (\S+)|recipes --name (\S+)", line):
            if not "".join(recipe).endswith(".yaml"):  # a reader's own file
                find_recipe("".join(recipe))


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = [f"{name}: {line}" for name, line in named(r"make [a-z]") if line.split()[1] not in targets]
    assert not wrong, "\n".join(wrong)


def test_files_exist():
    """A path in backticks, or in a command, is there; <op> and the like stand for a name."""
    path = re.compile(r"(?<![\w/.-])(?:csrc|cls2det|cls2det_ops|tests|benchmarks|docs|\.ci)/[\w./-]*")
    wrong = []
    for name, text in GUIDE.items():
        for line in commands(text):
            for match in path.finditer(line):
                if line[match.end() : match.end() + 1] != "<" and not (ROOT / match[0]).exists():
                    wrong.append(f"{name}: {match[0]}")
    assert not wrong, "\n".join(wrong)


def test_links_lead_somewhere():
    wrong = []
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text)):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            if not file.is_file() or (anchor and anchor not in anchors(file.read_text())):
                wrong.append(f"{name}: {target}")
    assert not wrong, "\n".join(wrong)


def anchors(text: str) -> set[str]:
    """Of the headings, as forges and the site make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_messages_of_an_installation_exist():
    """What docs/install.md says that its reader sees is what the code says, but for what stands for an ellipsis."""
    sources = [ROOT / "setup.py", ROOT / "cls2det_ops/_library.py", ROOT / "cls2det_ops/__main__.py"]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in sources))
    inline = re.findall(r"`([^`\n]+)`", PAGES["docs/install.md"])
    messages = [text for text in inline if " " in text and text.split()[0] not in ("pip", "uv", "python", "make", "cls2det")]
    messages.remove("is not a supported wheel on this platform")  # pip's
    assert len(messages) > 10
    pieces = {piece for text in messages for piece in re.split(r"…|missing: |slower: ", text)} - {"CUDA back end "}
    assert [piece for piece in pieces if piece not in code] == []


FAULT = re.compile(r"^\| .* \| (\w+): (.*) \|$", re.MULTILINE)


def test_every_fault_of_the_table_has_its_test():
    tests = {
        path.stem.removeprefix("test_faulty_"): re.findall(r"^def test_(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in (ROOT / "tests").glob("test_faulty_*.py")
    }
    rows = [(place, name) for place, names in FAULT.findall(PAGES["docs/faults.md"]) for name in re.findall(r"`(\w+)`", names)]
    assert len(rows) >= 60
    assert [row for row in rows if not any(row[1] in test for test in tests[row[0]])] == []
