"""figures.example.token_labels: labels that fit, by priority."""

from __future__ import annotations

from figures.drawing.text import line_inches
from figures.example.token_labels import Slot, chosen_labels, flow, labels_left_out, left_out_note


def slots(words: list[tuple[str, str, int]]) -> list[Slot]:
    return [Slot(text, role, "response", 0, number, (at,)) for at, (text, role, number) in enumerate(words)]


def test_every_slot_has_a_label_where_there_is_room():
    some = slots([("a", "none", -1), ("1", "operand", 0), ("2", "operand", 0)])
    assert [(label.text, label.middle) for label in chosen_labels(some, 2.0)] == [("a", 0.5), ("1", 1.5), ("2", 2.5)]


def test_without_room_only_numbers_have_labels_by_priority():
    rest = [("a", "none", -1)] * 10
    words = [*rest, ("1", "operand", 0), ("2", "operand", 0), ("+", "operator", -1), *rest, ("7", "question_number", 1), *rest]
    words += [("3", "final_answer", 2)]
    line = line_inches()
    assert [(label.text, label.middle) for label in chosen_labels(slots(words), 3.5 * line)] == [("12", 11.0), ("7", 23.5), ("3", 34.5)]
    assert [label.text for label in chosen_labels(slots(words), 2.5 * line)] == ["7", "3"]
    assert chosen_labels([], 1.0) == []


def test_labels_stay_near_their_slots():
    crowd = [("1", "operand", number) for number in range(40)]
    rest = [("a", "none", -1)] * 160
    length = 20 * line_inches()
    # The crowded numbers take four lines at the start or the end; labels are there, or at most a line and a half beyond.
    for words in (crowd + rest, rest + crowd):
        assert 4 <= len(chosen_labels(slots(words), length)) <= 6


def test_legend_entries_flow_into_lines():
    gap = 0.14
    assert flow([1.0, 1.0, 1.0, 5.0], 2.5) == [(0.0, 0), (1.0 + gap, 0), (0.0, 1), (0.0, 2)]


def test_labels_that_are_left_out_are_counted():
    words = slots([("a", "none", -1), *(("1", "operand", number) for number in range(40))])
    line = line_inches()
    assert labels_left_out(words, 41 * line + 1e-6) == 0
    assert labels_left_out(words, 10 * line) == 40 - len(chosen_labels(words, 10 * line)) >= 30
    assert labels_left_out([], 1.0) == 0
    assert [left_out_note(count) for count in (0, 1, 7)] == ["", "1 label left out for lack of room", "7 labels left out for lack of room"]
