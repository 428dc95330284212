"""Instruction rows and conversations, read into one record each.

    Alpaca       {"instruction", "input", "output"}
    self-instruct seeds   {"id", "instruction", "instances": [{"input", "output"}]}
    chat         {"messages": [{"role": "system" | "user" | "assistant", "content"}]}
    LLaVA        {"id", "image", "conversations": [{"from": "system" | "human" | "gpt", "value"}]}

A JSON array or JSON lines; "image", where a row has one, is a path below the folder of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from excitor_mm.data.pack import DataSet, Id, Record, source_facts
from excitor_mm.data.samples import Dialogue, Sample
from excitor_mm.errors import DataError
from excitor_mm.files import read_rows
from excitor_mm.templates import Turn

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
IMAGE_MARK = "<image>"  # LLaVA writes it where the picture stands; ours takes no place in the text


def read_instructions(rows: Path, images: Path | None = None, part: slice | None = None) -> DataSet:
    """One record an instruction or conversation.

    Args:
        rows: the file.
        images: folder of the images that rows name.
        part: which rows; None: all.

    Raises:
        DataError: not such a file, or images named without a folder.
    """
    records = []
    problems: dict[str, list[Id]] = {"without an answer": [], "duplicate": []}
    seen: set[Id] = set()
    found = [entry for row in read_rows(rows)[part or slice(None)] for entry in _dialogues(rows, row)]
    for number, (name, image, dialogue) in enumerate(found):
        id_ = number if name is None else name
        if id_ in seen or not all((turn.answer or "").strip() for turn in dialogue.turns):
            problems["duplicate" if id_ in seen else "without an answer"].append(id_)
            continue
        seen.add(id_)
        if image is not None and images is None:
            raise DataError(f"{rows} names images ({image}): give their folder with --images.")
        paths = (images / image,) if image is not None and images is not None else ()
        records.append(Record(Sample(f"{number:012d}", id_, None, dialogue=dialogue), paths))
    return DataSet(
        records, source_facts(rows=rows, images=images, part=part and f"{part.start}:{part.stop}"), problems
    )


def _dialogues(path: Path, row: Any) -> Iterator[tuple[Id | None, str | None, Dialogue]]:
    """(id, image, dialogue) of a row; several where an instruction has several instances."""
    try:
        name, image = row.get("id"), row.get("image")
        if not isinstance(name, (int, str, type(None))) or not isinstance(image, (str, type(None))):
            raise TypeError("id and image are texts")
        if said := row.get("messages") or row.get("conversations"):
            yield name, image, _conversation(said)
        elif "instances" in row:
            for number, instance in enumerate(row["instances"]):
                turn = Turn(row["instruction"], str(instance["input"] or ""), answer=str(instance["output"]))
                yield f"{name}.{number}", image, Dialogue((turn,))
        else:
            turn = Turn(row["instruction"], str(row.get("input") or ""), answer=str(row["output"]))
            yield name, image, Dialogue((turn,))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: a row is neither an instruction with its output nor a conversation ({reason}): {str(row)[:80]}"
        ) from error


def _conversation(messages: Any) -> Dialogue:
    """Messages in turns; a system message may stand first."""
    said = [
        (ROLES[message.get("role") or message["from"]], str(message.get("content") or message.get("value") or ""))
        for message in messages
    ]
    system = ""
    if said and said[0][0] == "system":
        system = said.pop(0)[1]
    users, assistants = said[::2], said[1::2]
    if not said or len(said) % 2 or {r for r, _ in users} != {"user"} or {r for r, _ in assistants} != {"assistant"}:
        raise ValueError("user and assistant do not take turns, with an answer last")
    pairs = zip(users, assistants, strict=True)
    turns = tuple(Turn(asked.replace(IMAGE_MARK, "").strip(), answer=given) for (_, asked), (_, given) in pairs)
    return Dialogue(turns, system)
