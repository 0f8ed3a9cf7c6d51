"""Tells griffe, which reads docstrings for the site, of Keras' habits."""

import re

import griffe

_HEADING = re.compile(r"[A-Z][a-z]+( [a-z]+)?:")


class KerasHabits(griffe.Extension):
    """Rewrites Keras' sections as Google's, which griffe can read.

    Keras says "Example", and does not indent what follows; and a layer's
    class tells what a call takes.
    """

    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(_lines(obj.docstring.value))


def _lines(text):
    indent = ""
    for line in text.splitlines():
        if line == "Example:":
            indent = "    "
            yield "Examples:"
            continue
        if _HEADING.fullmatch(line):
            indent = ""
        if line == "Call arguments:":
            line = "Other parameters: Call arguments"
        yield indent + line if line else line
