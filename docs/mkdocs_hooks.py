"""What `make docs` adds to the pages of this folder: pages that lie elsewhere, and the reference of the API.

Links keep the form that they have in the repository: here they are checked, and led to where the site has their target.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Tests load this file where mkdocs is not installed.
if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Pages from elsewhere, by their place in the site.
ELSEWHERE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "benchmarks.md": "benchmarks/README.md"}
REFERENCE = "reference"
# Public without an `__all__`: all that they define and do not underline.
WHOLE_MODULES = ("memmod.errors", "memmod.functional")
# Arguments and fields that mean the same wherever they stand, so that docstrings need not repeat it.
CONVENTIONS = {
    "batch_size": "images in one forward pass",
    "class_names": "C names, in the order of the classes' numbers",
    "dataset": "a `memmod.data.Dataset`",
    "generator": "the `torch.Generator` of every random draw",
    "labels": "int64 `[N]`: the classes of N images",
    "num_classes": "C: how many classes there are; a memory has as many rows",
    "path": "of a file, as `str` or `os.PathLike`",
    "seed": "of every random draw: the same seed, the same result",
    "wf": "a `memmod.ModulatedModel`",
    "x": "a batch of images, `[B, C, H, W]`, as the network takes them",
}
CONVENTIONS_HEAD = """## Arguments that mean the same everywhere

| argument | meaning |
|---|---|
"""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")


def public_names() -> dict[str, list[str]]:
    """The public names of every public module, by the module; a name stands under the first module that has it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "memmod").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node in body:
            if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]:
                found[module] = ast.literal_eval(node.value)
        if module in WHOLE_MODULES:
            definitions = [node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
            found[module] = [node.name for node in definitions if not node.name.startswith("_")]
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from elsewhere and a page for each public module."""
    from mkdocs.structure.files import File

    for uri, source in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    names = public_names()
    pages = "".join(f"- [`{module}`]({module}.md): {', '.join(f'`{n}`' for n in names[module])}\n" for module in names)
    conventions = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in CONVENTIONS.items())
    index = f"# Reference\n\nWhat each public module exports.\n\n{pages}\n{CONVENTIONS_HEAD}{conventions}"
    files.append(File.generated(config, f"{REFERENCE}/index.md", content=index))
    for module, exported in names.items():
        summary = (
            f"::: {module}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}\n"
        )
        entries = "".join(f"\n::: {module}.{name}\n" for name in exported)
        page = f"# {module}\n\n{summary}{entries}"
        files.append(File.generated(config, f"{REFERENCE}/{module}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to the site's pages; to what the site does not have, only the text stays.

    Raises:
        PluginError: a link to a file that is not there.
    """
    from mkdocs.exceptions import PluginError

    uri = page.file.src_uri
    if uri.startswith(f"{REFERENCE}/"):
        return markdown
    source = ELSEWHERE.get(uri, f"docs/{uri}")
    try:
        return _moved(markdown, source, uri)
    except FileNotFoundError as error:
        raise PluginError(str(error)) from error


def _moved(markdown: str, source: str, uri: str) -> str:
    return "".join(
        text if is_code else LINK.sub(lambda found: _link(found, source, uri), text)
        for text, is_code in _parts(markdown)
    )


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The text, and whether it is a fenced block of code."""
    for number, part in enumerate(re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)):
        yield part, number % 2 == 1


def _link(found: re.Match[str], source: str, uri: str) -> str:
    picture, text, target = found.groups()
    path, _, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return found[0]
    in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if (ROOT / in_repository / "README.md").is_file():
        in_repository += "/README.md"
    if not (ROOT / in_repository).exists():
        raise FileNotFoundError(f"{source} links to {target}, but there is no {in_repository}")
    moved = {elsewhere: page for page, elsewhere in ELSEWHERE.items()}
    if in_repository.startswith("docs/") and (ROOT / in_repository).is_file():
        place = in_repository.removeprefix("docs/")
    elif in_repository in moved:
        place = moved[in_repository]
    else:
        return text
    relative = posixpath.relpath(place, posixpath.dirname(uri) or ".")
    return f"{picture}[{text}]({relative}{'#' if anchor else ''}{anchor})"
