"""Tells griffe, which reads docstrings for the site, of Keras' habits."""

import re

import griffe

_GOOGLE = {
    "Example:": "Examples:",
    "Call arguments:": "Other parameters: Call arguments",
}
_HEADING = re.compile(r"[A-Z][a-z]+( [a-z]+)?:")


class KerasHabits(griffe.Extension):
    """Rewrites Keras' sections as Google's, which griffe can read.

    Keras says "Example", and does not indent what follows; a layer's class
    tells what a call takes; and a colon in what is returned ends no type.
    """

    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            returned = getattr(obj, "returns", None) or ""
            lines = _lines(obj.docstring.value, returned)
            obj.docstring.value = "\n".join(lines)


def _lines(text, returned):
    indent, before = "", ""
    for line in text.splitlines():
        if _HEADING.fullmatch(line):
            indent = "    " if line == "Example:" else ""
            yield _GOOGLE.get(line, line)
        elif before == "Returns:":
            yield f"    {returned}: {line.strip()}"
        else:
            yield indent + line if line else line
        before = line
