"""Every figure of one problem.

Add a figure by adding an entry to `EXAMPLE_FIGURES`, or from a package of your own by an entry point in the group
`primed_heads.example_figures`.
"""

from __future__ import annotations

from figures.drawing.entry import FigureEntry
from figures.example.attention_arcs import attention_arcs
from figures.example.probabilities import number_probabilities
from figures.example.standing import standing_map
from figures.example.steps import step_bars
from figures.example.token_maps import token_map

EXAMPLE_FIGURES: dict[str, FigureEntry] = {
    "map": FigureEntry(lambda content, head: token_map(content.example, head), "Attention of head {head}, token by token.", each=("head",)),
    "numbers": FigureEntry(
        lambda content, head: token_map(content.example, head, "numbers", "numbers"),
        "Attention of head {head}, number by number.",
        each=("head",),
    ),
    "arcs": FigureEntry(
        lambda content, head: attention_arcs(content.example, head), "Attention of head {head} from the response's numbers.", each=("head",)
    ),
    "standing": FigureEntry(lambda content: standing_map(content.example), "Every head on this problem compared with the run."),
    "steps": FigureEntry(lambda content: step_bars(content.example, content.heads), "Attention of heads at each step."),
    "number_probabilities": FigureEntry(
        lambda content: number_probabilities(content.example), "Probability of every token of a number that was read."
    ),
}
"""File name to figure; layer and head of a figure of one head are added to its file name."""
