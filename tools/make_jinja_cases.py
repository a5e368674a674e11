#!/usr/bin/env python3
"""Writes what Python's jinja2 makes of the templates in tests/jinja, for jinja_test to compare.

    python3 tools/make_jinja_cases.py            writes tests/jinja/data/*.json
    python3 tools/make_jinja_cases.py --random SEED COUNT
                                                 prints random snippets, one JSON a line

The environment is the one Hugging Face's apply_chat_template() sets up. Needs jinja2 (3.1).
"""

import copy
import json
import random
import sys
import warnings
from pathlib import Path

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "jinja"


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @staticmethod
    def _body(caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: f"<{format}>"
    return env


ENV = environment()


def outcome(template, variables):
    """{"text": ...} or {"error": ...}."""
    try:
        text = ENV.from_string(template).render(**copy.deepcopy(variables))  # the indent filter changes lists
        text.encode()  # lone surrogates are no text
        return {"text": text}
    except Exception as error:  # whatever Python raises
        return {"error": f"{type(error).__name__}: {error}"[:200]}


# ---- chat templates -------------------------------------------------------------------------

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather at a place <now> & \"soon\"",
        "parameters": {"type": "object", "properties": {
            "place": {"type": "string", "description": "Ort, z. B. Köln"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
            "ratio": {"type": "number", "enum": [0.5, 1.0, 1e-7, 1e22]}},
            "required": ["place"], "additionalProperties": False}, "return": {"type": "string"}}},
    {"type": "function", "function": {"name": "stop", "description": "", "parameters": {}}},
]


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="abcdefghi", wrapped=True):
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": id, "function": function} if wrapped else function


CONVERSATIONS = {
    "one": [say("user", "Hi")],
    "system": [say("system", "Be brief."), say("user", "Hi")],
    "system alone": [say("system", "Be brief.")],
    "turns": [say("user", "Hi"), say("assistant", "Yo"), say("user", "Bye")],
    "turns with system": [say("system", "  SYS \n"), say("user", " a "), say("assistant", "b\n"),
                          say("user", "\tc\u00a0"), say("assistant", " d")],
    "empty texts": [say("system", ""), say("user", ""), say("assistant", ""), say("user", "")],
    "markup": [say("user", "{{ 1 + 1 }} {% if %} {# <|im_end|> & <b>\"'\\ #}")],
    "unicode": [say("user", "你好 🌍 é\u0301 \u2028 \ud7ff\U0010ffff"), say("assistant", "世界\n\n"), say("user", "ß")],
    "line ends": [say("user", "a\r\nb\rc\n\n"), say("assistant", "\n\nd"), say("user", "e")],
    "two users": [say("user", "a"), say("user", "b")],
    "assistant first": [say("assistant", "a"), say("user", "b")],
    "assistant last": [say("user", "a"), say("assistant", "b")],
    "late system": [say("user", "a"), say("system", "b"), say("user", "c")],
    "odd role": [say("user", "a"), say("critic", "b"), say("function", "c")],
    "thinking": [say("user", "q1"), say("assistant", "<think>\nwhy\n</think>\n\nanswer 1"),
                 say("user", "q2"), say("assistant", "<think>\nhow\n</think>\n\nanswer 2")],
    "thinking, open": [say("user", "q1"), say("assistant", "no end of <think>\nx"),
                       say("user", "q2"), say("assistant", "only </think> end")],
    "thinking apart": [say("user", "q"), say("assistant", "a", reasoning_content="because\n"),
                       say("user", "q"), say("assistant", "a", reasoning_content="\nof that")],
    "thinking and tools": [
        say("user", "q"), say("assistant", "<think>\nlook\n</think>\n\n", tool_calls=[call("get_weather", {"place": "Köln"})]),
        say("tool", "7 °C", tool_call_id="abcdefghi"), say("assistant", "<think>\ncold\n</think>\n\nCold.")],
    "tool call": [
        say("system", "SYS"), say("user", "Weather?"),
        say("assistant", None, tool_calls=[call("get_weather", {"place": "Köln", "days": 2, "exact": True, "x": None, "y": [1.5, {}]})]),
        say("tool", "{\"t\": 7}", tool_call_id="abcdefghi"), say("assistant", "7 degrees"), say("user", "Thanks")],
    "tool calls": [
        say("user", "Weather?"),
        say("assistant", "Two:", tool_calls=[call("get_weather", {"place": "A"}), call("stop", "{\"raw\": 1}", wrapped=False)]),
        say("tool", "a", tool_call_id="abcdefghi"), say("tool", "b", tool_call_id="abcdefghi"), say("assistant", "done"), say("user", "ok")],
    "tool id": [say("user", "x"), say("assistant", "", tool_calls=[call("stop", {}, id="short")]), say("tool", "b")],
    "string arguments": [say("user", "x"), say("assistant", "", tool_calls=[call("brave_search", {"query": "a \"b\"", "n": "3"})]),
                         say("tool", {"content": [1, "zwei"]}, tool_call_id="123456789")],
    "tool list": [say("user", "x"), say("tool", [{"a": 1}, "b"], tool_call_id="123456789")],
    "parts": [say("user", [{"type": "text", "text": "Look: "}, {"type": "image"}, "and", {"type": "image_url"}]),
              say("assistant", [{"type": "text", "text": "two\nlines\n\nof text"}]), say("assistant", "again")],
    "odd parts": [say("user", [{"type": "audio", "data": [1]}])],
    "no content": [{"role": "user"}, {"role": "assistant"}],
    "no content, null": [say("user", None)],
    "no role": [{"content": "x"}],
    "developers": [say("developer", "x")],
    "none": [],
    "long": [say(("user", "assistant")[i % 2], f"line {i}\n" * (i % 5)) for i in range(40)],
    "not messages": "user",
}

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
OPTIONS = {
    "llama3": [{}],
    "llama31": [{}, {"tools": TOOLS}, {"tools": TOOLS, "tools_in_user_message": False, "use_clock": True},
                {"builtin_tools": ["brave_search", "code_interpreter"], "date_string": "today"}],
    "qwen25": [{}, {"tools": TOOLS}],
    "qwen3": [{}, {"enable_thinking": False}, {"enable_thinking": True, "tools": TOOLS}],
    "mistral": [{}, {"tekken": True}, {"tools": TOOLS}, {"tekken": True, "tools": TOOLS}],
    "openpangu": [{}],
    "needle": [{}],
    "parts": [{}],
}


def chat_cases():
    cases = []
    for name, options in OPTIONS.items():
        template = (FOLDER / "templates" / f"{name}.jinja").read_text()
        for option in options:
            for title, messages in CONVERSATIONS.items():
                for prompt in (True, False) if title in ("one", "turns", "none") else (True,):
                    variables = {**SPECIALS, "messages": messages, "add_generation_prompt": prompt, **option}
                    cases.append({"template": name, "title": title, "variables": variables, **outcome(template, variables)})
    return cases


# ---- snippets -------------------------------------------------------------------------------

VARIABLES = {
    "n": 7, "zero": 0, "x": -2.5, "t": True, "f": False, "none": None, "nil": None,
    "s": "Hello, World", "u": "Grüße, 世界! ß", "e": "", "w": "  \t pad\u00a0\n", "m": "a\nb\r\nc\n", "html": "<a href='x'>&\"</a>",
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "nested": [[1, 2], [3, [4, 5]], []], "mixed": [1, "a", None, 2.5, True],
    "d": {"b": 1, "a": [1, 2], "c": {"k": "v"}, "items": "shadow", "_p": 5}, "ed": {}, "el": [],
    "users": [{"name": "Bob", "age": 30, "tags": ["x"]}, {"name": "ann", "age": 25, "tags": []}, {"name": "Cid", "age": 30}],
}


def snippets():
    """One a line, in which the sign for the Return key is a new line."""
    return [line.replace("\u23ce", "\n") for line in (FOLDER / "snippets.txt").read_text().split("\n")[:-1]]


def snippet_cases(templates):
    return [{"template": template, **outcome(template, VARIABLES)} for template in templates]


# ---- random snippets ------------------------------------------------------------------------

class Generator:
    """Random templates of the language's parts, most of them nonsense that nevertheless renders.

    They assign to names of their own only: a block that reads a variable which the template around
    it sets further down finds it undefined in jinja2, even where the caller has given it.
    """

    STRINGS = ["''", "'a'", "'Ab c'", "\"x,y,,z\"", "' pad '", "'ünï'", "'a\\nb\\n'", "'12'", "'-3.5'", "'A' 'b'"]
    NUMBERS = ["0", "1", "2", "-1", "3", "7", "2.5", "-0.5", "1e3", "10", "100", "0.1"]
    NAMES = ["n", "zero", "x", "t", "f", "nil", "s", "u", "e", "w", "m", "l", "ls", "nested", "mixed", "d", "ed", "el", "users", "missing"]
    BINARY = ["+", "-", "*", "/", "//", "~", "==", "!=", "<", "<=", ">", ">=", "and", "or", "in", "not in"]
    FILTERS = ["trim", "upper", "lower", "capitalize", "title", "length", "count", "first", "last", "list", "string", "int", "float",
               "tojson", "reverse|list", "sort", "items|list",
               "join(',')", "join", "default('D')", "d('D', true)", "replace('a', 'bb')", "replace('', '-', 2)", "tojson(indent=2)",
               "indent(2)", "indent(2, true)", "indent(width='> ', blank=true)", "dictsort", "dictsort(by='value')", "map('upper')|list", "map('string')|join('|')",
               "map(attribute='name')|list", "map(attribute='tags.0', default='-')|list", "select|list", "reject('none')|list", "select('string')|list",
               "selectattr('name')|list", "selectattr('age', 'gt', 26)|list", "rejectattr('tags')|map(attribute='name')|list",
               "sort(reverse=true)", "sort(attribute='age')", "int(5)", "float(1.5)", "trim('aH')", "length|string"]
    TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false", "mapping", "iterable",
             "sequence", "odd", "even", "divisibleby(2)", "divisibleby 3", "eq(1)", "equalto 'a'", "ne(2)", "gt 1", "lt(3)", "ge 2", "le(0)",
             "in [1, 'a']", "sameas none", "sameas(true)"]
    METHODS = ["strip()", "lstrip()", "rstrip()", "strip('aH ')", "split()", "split(',')", "split(',', 1)", "split(none, 1)",
               "startswith('a')", "startswith(('H', 'a'))", "endswith('d')", "upper()", "lower()", "title()", "capitalize()",
               "replace('a', 'b')", "replace('l', 'L', 1)", "find('o')", "join(ls)", "removeprefix('He')", "removesuffix('ld')",
               "get('a')", "get('q', 1)", "items()|list", "keys()|list", "values()|list", "append(1)", "pop()", "update({})"]
    SUBSCRIPTS = ["[0]", "[-1]", "[1:]", "[:-1]", "[::-1]", "[1:3]", "[::2]", "[-2:]", "[5:1:-2]", "['a']", "['name']", ".a", ".name", ".items", ".c.k", "[n]", "[99]", ".0",
                  "[true]", "[1.5]", "[none]", "[-100:100:3]"]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, options):
        return self.random.choice(options)

    def expression(self, depth=0):
        kind = self.random.random()
        if depth > 3 or kind < 0.25:
            return self.pick(self.pick([self.STRINGS, self.NUMBERS, self.NAMES, self.NAMES]))
        inner = lambda: self.expression(depth + 1)
        if kind < 0.42:
            return f"{inner()} {self.pick(self.BINARY)} {inner()}"
        if kind < 0.47:
            return f"({inner()})"
        if kind < 0.62:
            return f"{self.atom(depth)}|{self.pick(self.FILTERS)}"
        if kind < 0.68:
            return f"{inner()} is {self.pick(['', 'not '])}{self.pick(self.TESTS)}"
        if kind < 0.80:
            return f"{self.atom(depth)}.{self.pick(self.METHODS)}"
        if kind < 0.88:
            subscript = self.pick(self.SUBSCRIPTS)
            # jinja2 folds constants, and slices of constants fail otherwise than those of variables
            return (self.pick(self.NAMES) if ":" in subscript else self.atom(depth)) + subscript
        if kind < 0.91:
            return f"{inner()} if {inner()} else {inner()}"
        if kind < 0.93:
            return f"{self.pick(['not', '-'])} {inner()}"
        if kind < 0.96:
            return "[" + ", ".join(inner() for _ in range(self.random.randrange(4))) + "]"
        if kind < 0.98:
            return "{" + ", ".join(f"{self.pick(self.STRINGS)}: {inner()}" for _ in range(self.random.randrange(3))) + "}"
        return f"range({self.pick(['3', 'n', '1, 4', '5, 0, -2'])})|list"

    def atom(self, depth):
        return self.pick(self.NAMES) if self.random.random() < 0.6 else f"({self.expression(depth + 1)})"

    def tag(self, text):
        left, right = self.pick(["", "", "-", "+"]), self.pick(["", "", "-", "+"])
        return f"{{%{left} {text} {right}%}}"

    def statement(self, depth=0):
        space = self.pick(["", "", " ", "\n", "\n  ", "  \n\n", "x", "é "])
        kind = self.random.random()
        body = lambda: "".join(self.statement(depth + 1) for _ in range(self.random.randrange(1, 3)))
        if depth > 2 or kind < 0.5:
            return space + f"{{{{{self.pick(['', '-'])} {self.expression(1)} {self.pick(['', '-'])}}}}}" + space
        if kind < 0.62:
            return space + self.tag(f"set {self.pick(['v', 'r'])} = {self.expression(1)}") + space
        if kind < 0.74:
            otherwise = self.tag("else") + body() if self.random.random() < 0.5 else ""
            return space + self.tag(f"if {self.expression(1)}") + body() + otherwise + self.tag("endif")
        if kind < 0.92:
            where = f" if {self.pick(['s', 'v', 'n'])}" if self.random.random() < 0.2 else ""
            loop = self.pick(["index", "first", "last", "length", "revindex0", "previtem", "nextitem"])
            jump = self.tag("if v") + self.tag(self.pick(["break", "continue"])) + self.tag("endif") if self.random.random() < 0.3 else ""
            otherwise = self.tag("else") + body() if self.random.random() < 0.3 else ""
            return (space + self.tag(f"for v in {self.atom(depth)}{where}") + body() + jump + f"{{{{ v }}}}{{{{ loop.{loop} }}}}" + otherwise + self.tag("endfor"))
        if kind < 0.98:
            return space + self.tag("set r") + body() + self.tag("endset") + "{{ r }}"
        return space + self.tag("macro m(a, b=n)") + body() + "{{ a }}{{ b }}" + self.tag("endmacro") + "{{ m(s) }}{{ m(b=1) }}"


def is_portable(case):
    """Whether the outcome is one that another implementation can have: no addresses, no big integers."""
    if "text" in case:
        return " at 0x" not in case["text"] and len(case["text"]) < 2000 and not any(
            len(word) > 18 for word in "".join(c if c.isdigit() else " " for c in case["text"]).split())
    return not case["error"].startswith(("MemoryError", "OverflowError", "RecursionError"))


def random_cases(seed, count):
    generator, cases = Generator(seed), []
    while len(cases) < count:
        template = "".join(generator.statement() for _ in range(generator.random.randrange(1, 4)))
        case = {"template": template, **outcome(template, VARIABLES)}
        if is_portable(case) and ("text" in case or generator.random.random() < 0.15):
            cases.append(case)
    return cases


def main():
    warnings.simplefilter("ignore", SyntaxWarning)
    if sys.argv[1:2] == ["--random"]:
        for case in random_cases(int(sys.argv[2]), int(sys.argv[3])):
            print(json.dumps({**case, "variables": VARIABLES}, ensure_ascii=False))
        return
    data = FOLDER / "data"
    data.mkdir(exist_ok=True)
    for name, content in {
        "chat": {"cases": chat_cases()},
        "snippets": {"variables": VARIABLES, "cases": snippet_cases(snippets())},
        "random": {"variables": VARIABLES, "cases": random_cases(1, 1500)},
    }.items():
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in content.pop("cases"))
        head = "".join(f'"{key}": {json.dumps(value, ensure_ascii=False)},\n' for key, value in content.items())
        (data / f"{name}.json").write_text(f'{{{head}"cases": [\n{lines}\n]}}\n')
        print(name, lines.count("\n") + 1, "cases,", lines.count('"error": '), "of them errors")


if __name__ == "__main__":
    main()
