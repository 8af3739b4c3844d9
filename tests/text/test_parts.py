"""Parts, and what a tool says of its arguments."""

from headrace.text.parts import CallArguments, CallStart, Content, Said, Thought, Tool, joined, merged


def test_schemas_of_arguments_bring_their_definitions():
    tool = Tool(
        "t", {"properties": {"a": {"$ref": "#/$defs/x"}, "b": True}, "$defs": {"x": {}}, "required": ["a", 3]}
    )
    assert tool.argument("a") == {"$ref": "#/$defs/x", "$defs": {"x": {}}}
    assert tool.argument("b") is True
    assert tool.required == ["a"]
    assert Tool("t", {"properties": [], "required": "a"}).properties == {}
    assert Tool("t", {"properties": [], "required": "a"}).required == []


def test_neighbours_of_one_kind_are_one():
    parts = [
        Content("a"), Content("b"), Thought("c"), Thought("d"), CallStart(0, "1", "x"), CallArguments(0, "{"),
        CallArguments(0, "}"), CallStart(1, "2", "x"), CallStart(2, "3", "y"), Content("e"),
    ]  # fmt: skip
    found = merged(parts)
    assert found == [
        Content("ab"), Thought("cd"), CallStart(0, "1", "x"), CallArguments(0, "{}"), CallStart(1, "2", "x"),
        CallStart(2, "3", "y"), Content("e"),
    ]  # fmt: skip
    assert joined(found) == joined(parts)
    assert joined([]) == Said()
