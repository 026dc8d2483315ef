"""hook: what mkdocs does besides: files of the repository that pages link to, the tables of family.yaml, and a look for
anything that a reader's browser would ask of another host."""

import html
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Page

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "composer/family/family.schema.json"
OUTSIDE = "repository/"
"""The folder of the site with files of the repository, each under its own path."""

LINK = re.compile(r"(\]\()([^)#\s]+)")
KEYS = re.compile(r"<!-- keys:.*?-->")
log = logging.getLogger("mkdocs.hooks.layerloom")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to with ../, and those that are in the navigation."""
    wanted = {path.removeprefix(OUTSIDE) for path in re.findall(rf"{OUTSIDE}[\w./-]+", json.dumps(config.nav))}
    for page in files.documentation_pages():
        wanted |= {link[3:] for _, link in LINK.findall(page.content_string) if link.startswith("../")}
    for path in sorted(wanted):
        if not (ROOT / path).is_file():
            log.warning("%s: there is no such file in the repository", path)
            continue
        files.append(File.generated(config, f"{OUTSIDE}{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository become links of the site."""
    place = page.file.src_uri
    if not place.startswith(OUTSIDE):
        markdown = KEYS.sub(lambda _: reference(json.loads(SCHEMA.read_text())), markdown)
        return LINK.sub(lambda link: link[1] + re.sub(r"^\.\./", OUTSIDE, link[2]), markdown)
    up = "../" * place.count("/")
    return LINK.sub(lambda link: link[1] + re.sub(r"^docs/", up, link[2]), markdown)


def on_post_build(config: MkDocsConfig) -> None:
    for path in Path(config.site_dir).rglob("*.html"):
        for address in asked_of_others(path.read_text()):
            log.warning("%s asks %s", path.name, address)


def asked_of_others(page: str) -> list[str]:
    """What a browser fetches from other hosts to show a page."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
            attributes = dict(given)
            addresses = [attributes.get(key) for key in ("src", "srcset", "poster", "data")]
            if tag == "link" and attributes.get("rel") not in ("canonical", "prev", "next"):
                addresses.append(attributes.get("href"))
            found.extend(address for address in addresses if address and re.match(r"(https?:)?//", address))

    Reader().feed(page)
    return found


def reference(schema: dict[str, Any]) -> str:
    """A heading and a table for each kind of mapping in family.yaml."""
    models = {"family.yaml": schema, **schema["$defs"]}
    titles = {
        "family.yaml": "family.yaml",
        "Location": "base",
        "ExpertEntry": "experts.NAME",
        "LayerSwap": "recipe: a layer swap",
        "Soup": "recipe: a soup",
        "Table": "recipe: a table",
        "Kinds": "recipe: a layer by kind of module",
        "CompositionEntry": "compositions.NAME",
        "Fallback": "fallback",
    }
    assert titles.keys() == models.keys(), f"docs/hook.py has no title for {models.keys() ^ titles.keys()}"
    parts = []
    for name, title in titles.items():
        model = models[name]
        parts += [f"### {title}", html.escape(model["description"], quote=False) if "description" in model else ""]
        parts.append("\n".join(rows(model, titles)))
    return "\n\n".join(parts)


def rows(model: dict[str, Any], titles: dict[str, str]) -> list[str]:
    found = ["| key | value | default | |", "|---|---|---|---|"]
    for key, its in model["properties"].items():
        if key in model.get("required", ()):
            default = "*needed*"
        else:
            default = "" if its.get("default") in (None, {}, []) or "$ref" in str(its) else f"`{its['default']}`"
        said = html.escape(its.get("description", ""), quote=False)
        found.append(f"| `{key}` | {kind(its, titles)} | {default} | {said} |")
    return found


def kind(of: dict[str, Any], titles: dict[str, str]) -> str:
    """What may stand there, for people."""
    if "$ref" in of:
        title = titles[of["$ref"].rpartition("/")[2]]
        return f"[{title}](#{re.sub(r'[^a-z0-9 _-]', '', title.lower()).replace(' ', '-')})"
    if "enum" in of:
        return ", ".join(f"`{value}`" for value in of["enum"])
    if "const" in of:
        return f"`{of['const']}`"
    for word in ("anyOf", "oneOf"):
        if word in of:
            return " or ".join(kind(each, titles) for each in of[word] if each.get("type") != "null")
    if of["type"] == "array":
        return f"a list: {kind(of['items'], titles)}"
    if of["type"] == "object":
        inner = kind(of["additionalProperties"], titles)
        return f"a share of each: {inner}" if "number" in inner else f"by name: {inner}"
    bounds = [str(of[key]).removesuffix(".0") for key in ("minimum", "maximum") if key in of]
    words = {"string": "text", "number": "a number", "integer": "a whole number"}
    return words[of["type"]] + (f" from {' to '.join(bounds)}" if bounds else "")
