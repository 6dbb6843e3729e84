"""The pages of the repository: their links, their code and their commands."""

import pathlib
import re
import shlex

from tests.recipes import ROOT

README = ROOT / "README.md"
ENGLISH = ROOT / "docs" / "skip_connections.md"
KOREAN = ROOT / "docs" / "skip_connections.ko.md"
# docs/reference.md is generated.
DOCS = sorted(
  {*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "reference.md"}
)
# Each of these has something that can be run.
RUNNABLE = [README, ROOT / "SECURITY.md", *DOCS]
PAGES = [
  *RUNNABLE,
  ROOT / "CHANGELOG.md",
  ROOT / "CONTRIBUTING.md",
  *sorted((ROOT / "benchmarks").glob("*.md")),
]
# What installs comes before the command itself in the first line of the README.
_INSTALL = "pip install -e . && "


def name_of(page: pathlib.Path) -> str:
  """Returns the name of a page as a test's id."""
  return page.relative_to(ROOT).as_posix()


def fences(page: pathlib.Path) -> list[tuple[str, str]]:
  """Returns the kind and the text of each fenced block of a page, in order."""
  pattern = r"^```([\w ]*)\n(.*?)^```$"
  return re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)


def code(page: pathlib.Path) -> list[str]:
  """Returns the Python blocks of a page that can be run."""
  return [text for kind, text in fences(page) if kind == "python"]


def commands(text: str) -> list[str]:
  """Returns the commands of a shell block, each on one line."""
  lines = text.replace("\\\n", " ").splitlines()
  return [
    line.split("   #")[0].strip().removeprefix(_INSTALL)
    for line in lines
    if not line.startswith("pip install") or line.startswith(_INSTALL)
  ]


def shell(page: pathlib.Path) -> list[str]:
  """Returns all commands of a page, also those that are not run here."""
  return [
    command
    for kind, text in fences(page)
    if kind in ("", "sh")
    for command in commands(text)
  ]


def recipe_and_changes(command: str) -> tuple[pathlib.Path, list[str]] | None:
  """Returns the recipe of a command and its overrides; None if it has none."""
  # Another command may have it in quotes.
  _, python, rest = command.partition("python ")
  try:
    words = shlex.split((python + rest).rstrip('"'))
  except ValueError:  # A line of a tree or a log.
    return None
  if "--config" not in words:
    return None
  prefix = "--config."
  changes = [w.removeprefix(prefix) for w in words if w.startswith(prefix)]
  recipe = words[words.index("--config") + 1]
  known = ROOT / "configs" / f"{recipe}.py"  # By its name, or by a path.
  return (known if known.exists() else ROOT / recipe), changes


def anchors(page: pathlib.Path) -> set[str]:
  """Returns the names that GitHub gives the headings of a page."""
  headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
  return {
    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    for heading in headings
  }


def broken_links(page: pathlib.Path) -> list[str]:
  """Returns the links of a page within the repository that lead nowhere."""
  broken = []
  for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists() or (anchor and anchor not in anchors(target)):
      broken.append(link)
  return broken
