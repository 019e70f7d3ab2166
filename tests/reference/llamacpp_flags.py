#!/usr/bin/env python3
"""Writes the command line of llama-server, as its own help lists it, in the form of crates/core/data/flags_llamacpp.tsv.

    python tests/reference/llamacpp_flags.py > crates/core/data/flags_llamacpp.tsv    # in an environment with xllamacpp

Columns are those of engine_flags.py. A switch is what is listed without a value; it is two-sided where a `--no-` spelling is
listed with it (spellings of the opposite that do not follow from the name are marked with !). Flags that the help calls removed are left out.
"""
import os
import re
import subprocess
import sys

VERSION = "b11549"
HERE = os.path.dirname(os.path.abspath(__file__))
LINE = re.compile(r"^(-[^ ,]+(?:, +-[^ ,]+)*)(?: +(\S.*?))?(?:  +(.*))?$")


def options(text):
    """(spellings, value, description) of each option."""
    out = []
    for line in text.splitlines():
        if line.startswith("-") and not line.startswith("-----"):
            out.append([line, ""])
        elif line.startswith(" ") and out:
            out[-1][1] += " " + line.strip()
    for line, more in out:
        spellings, rest = [], line
        while rest.startswith("-"):
            spelling, _, rest = rest.partition(" ")
            spellings.append(spelling.rstrip(","))
            rest = rest.lstrip() if spelling.endswith(",") else rest
            if not spelling.endswith(","):
                break
        # A value follows after one blank, the description after two or more, or on the next line.
        value, _, said = rest.partition("  ") if not rest.startswith("  ") and rest.strip() else ("", "", rest)
        value = value.strip()
        if value and re.match(r"[a-z]+ [a-z]+ ", value + " "):
            value, said = "", value + " " + said
        yield spellings, value, (said.strip() + more).strip()


def refuses(flag, word):
    """Whether the parser stops at this word; asked in a process of its own, since it may end it."""
    ask = "import sys; sys.path.insert(0, %r); import llamacpp_parser as p; print('read' if p.parse(%r) else 'refused')"
    done = subprocess.run([sys.executable, "-c", ask % (HERE, ["--model", "m.gguf", flag, word])], capture_output=True)
    return b"read" not in done.stdout.split(b"\n")


def row(spellings, value, said):
    positive = [s for s in spellings if not re.match(r"--?no-", s) and s not in ("-nkvo", "-nocb", "-nr", "-no-kvu")]
    negative = [s for s in spellings if s not in positive]
    # The long spelling that engines' documents use comes first.
    long = [s for s in positive if s.startswith("--")]
    names = long[-1:] + [s for s in positive if s not in long[-1:]] if long else positive
    # The long opposite follows from the name; others are marked.
    short = ["!" + s for s in negative if names and s != "--no-" + names[0][2:]]
    if not value:
        takes = "b" if positive and negative else "0"
        names = names or negative
    else:
        takes = "2" if re.match(r"START END$", value) else "1"
    choices = ""
    listed = re.search(r"allowed values: ([a-z0-9_, ]+?) \(", said)
    braces = re.match(r"[\[{<]([a-z0-9|,\-]+)[\]}>]$", value)
    if listed:
        choices = listed.group(1).replace(", ", "|")
    elif braces and "..." not in value and "dev1" not in value:
        choices = re.sub(r"[,|]", "|", braces.group(1))
    default = re.search(r"\(default: '?([A-Za-z0-9_.\-]+)'?[,)]", said)
    default = default.group(1) if default else ""
    default = "" if default in ("unused", "none", "unset") else default
    kind = "str"
    if value in ("N", "PORT", "SEED") and refuses(positive[0], "x") and refuses(positive[0], "auto"):
        # What the help shows no whole number for may be a fraction.
        kind = "int" if re.fullmatch(r"-?\d+", default) else "float"
    if takes == "b":
        default = {"enabled": "True", "disabled": "False", "true": "True", "false": "False"}.get(default, "")
    if choices and default not in choices.split("|"):
        default = ""
    if kind != "str" and not re.fullmatch(r"-?\d+(\.\d+)?", default):
        default = ""
    return "\t".join([",".join(names + short), takes, kind, choices, default, VERSION, ""])


def main():
    ask = "import sys; sys.path.insert(0, %r); import llamacpp_parser; llamacpp_parser.parse(['--help'])" % HERE
    text = subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True).stdout.decode()
    print(f"# llamacpp {VERSION}: the help of its own argument parser, written by tests/reference/llamacpp_flags.py")
    print(f"# versions compared: {VERSION}")
    for spellings, value, said in options(text):
        if "argument has been removed" in said or "--help" in spellings:
            continue
        line = row(spellings, value, said)
        if "\t2\t" not in line:
            print(line)


main()
