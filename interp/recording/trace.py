# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""One text under the lens: what every head and the model's output say of it, from one forward pass. Holds no attention map.

The measures are those of `interp.recording.recorder`. Of the maps, which come block after block, only entries at or above a threshold are kept
(each row adds up to 1, so there are at most 1 / threshold a query) and, by step of the response, the mass on the question's numbers and
on earlier steps' results. Logits are made at the chosen positions alone, by the model's own forward (`logits_to_keep`), so its scales,
caps and biases are its own; a model whose forward does not know that argument makes all of them, as it always does.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from interp.attention.seam import attention_layers
from interp.measures.measure import Measure
from interp.recording.recorder import MapBlock, record
from interp.tables.errors import RecordingError
from interp.tables.example import ALTERNATIVES, FAINT, STEP_QUANTITIES, STRONG
from interp.tables.schema import ROLES, TOKEN_REGIONS
from interp.tokens import NUMBER, NUMBER_ROLES, AnnotatedText, Tokens

RESULT_ROLES = ("intermediate_result", "final_answer")
"""Roles of the tokens that a later step may take up."""


LOGITS_AT_ONCE = 1 << 22
"""Logits brought to float32 at a time: 16 MB."""


@dataclass(frozen=True)
class Trace:
    """What one pass over one text gives. Frames have the columns of their schema without `model`, sorted by its key.

    Attributes:
        layers: numbers of the layers that have attention.
        measures: names.
        values: each head's measures, [layer, head, measure, region] float64, NaN where undefined: as in the `examples` table.
        counts: queries behind each value, same shape.
        edges: of `interp.tables.example.EDGES`.
        steps: of `interp.tables.example.STEPS`.
        next: of `interp.tables.example.NEXT`.
    """

    layers: tuple[int, ...]
    measures: tuple[str, ...]
    values: np.ndarray
    counts: np.ndarray
    edges: pd.DataFrame
    steps: pd.DataFrame
    next: pd.DataFrame


def trace(
    model: nn.Module,
    tokens: Tokens,
    measures: Iterable[str] | Mapping[str, Measure] | None,
    *,
    step_of: np.ndarray,
    watched: Sequence[tuple[int, int]],
    numbers: Sequence[int] | None = None,
    faint: float = FAINT,
    strong: float | None = STRONG,
    seed: int = 0,
) -> Trace:
    """Read one text once, and keep what its tables need.

    For a step s, with Q_s its tokens that count as queries and R_s the tokens of result roles with 0 <= step < s:

        question_numbers  mean over i in Q_s of sum_j p_ij over the question's number tokens j
        earlier_results   mean over i in Q_s of sum_j p_ij over j in R_s

    each NaN with `n_queries` 0 where there is no such j, or Q_s is empty. The expectation at position p is the softmax, in float32, of the
    model's logits at p - 1. Tokens rank by falling logit, those of equal logit by rising id, so the order is that of a greedy choice.

    Args:
        model: a causal language model of transformers in evaluation mode, on any device; it may carry PEFT adapters.
        tokens: one text, from `annotate`.
        measures: as for `record`.
        step_of: which step of the response each token belongs to, [token] int; -1 outside.
        watched: (layer, head) of which every entry of at least `faint` is kept.
        numbers: positions at which the expectation is wanted, 1 or more; None takes all number tokens but one at position 0.
        faint: smallest probability kept of a watched head, above 0.
        strong: smallest probability kept of any other head, above 0; None keeps nothing of them.
        seed: of the shuffled token sets.

    Raises:
        RecordingError: several texts, steps of another length, positions that nothing stands before, a threshold that is not above 0, a
            watched head that the model does not have, a model without an output head, tokens without a tokenizer where an expectation is
            wanted, logits that are NaN or +inf.
        RecordingError: as `record`.
        InputError: an unknown measure.
        NonFiniteError: NaN in attention.
    """
    root = _causal_model(model)
    if len(tokens) != 1:
        raise RecordingError(f"{len(tokens)} texts: one at a time can be traced, tokens.select([0])")
    tokens = tokens.select([0], "right")  # a text that a model wrote may have kept its prompt's padding
    text = tokens.texts[0]
    step_of = _checked_steps(step_of, len(text))
    positions = _checked_positions(numbers, text)
    if len(positions) and tokens.tokenizer is None:
        raise RecordingError("these tokens were made without a tokenizer, so what is expected cannot be shown; ask for no numbers")
    for name, threshold in (("faint", faint), ("strong", strong)):
        if threshold is not None and not threshold > 0:
            raise RecordingError(f"{name} is {threshold}; it must be above 0: a table of all entries grows with the square of the text")
    layers, n_heads = attention_layers(root.config), int(root.config.get_text_config(decoder=True).num_attention_heads)
    unknown = [(layer, head) for layer, head in watched if layer not in layers or not 0 <= head < n_heads]
    if unknown:
        raise RecordingError(
            f"no head {unknown[0][0]}.{unknown[0][1]}: the model has layers {layers[0]} to {layers[-1]} with heads 0 to {n_heads - 1}"
        )
    thresholds = np.full((len(layers), n_heads), np.inf if strong is None else strong, np.float32)
    for layer, head in watched:
        thresholds[layers.index(layer), head] = faint
    reader = _Reader(text, step_of, layers, thresholds)
    device = next(root.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in tokens.inputs.items()}
    with torch.inference_mode(), record(model, tokens, measures, backend="blocked", seed=seed, reader=reader) as heads:
        logits = _logits(root, inputs, positions - 1)
    values, counts = heads.totals.values()
    expected = _next_table(logits, positions, text.ids, tokens.tokenizer)
    return Trace(layers, tuple(heads.measures), values[0], counts[0], reader.edges(), reader.steps(), expected)


# --- what is asked for ------------------------------------------------------------------------------------------------


def _causal_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model with its output head (PEFT's layers are inside it)."""
    root = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if root is None or root.get_output_embeddings() is None:
        name = type(model if root is None else root).__name__
        raise RecordingError(f"{name} has no output head; a causal language model of transformers is needed")
    return root


def _checked_steps(step_of: np.ndarray, n_tokens: int) -> np.ndarray:
    steps = np.asarray(step_of)
    if steps.shape != (n_tokens,) or not np.issubdtype(steps.dtype, np.integer):
        raise RecordingError(
            f"step_of is {steps.dtype} {list(steps.shape)}; it must hold an integer for each of the text's {n_tokens} tokens"
        )
    return np.maximum(steps.astype(np.int64), -1)


def _checked_positions(numbers: Sequence[int] | None, text: AnnotatedText) -> np.ndarray:
    if numbers is None:
        found = np.flatnonzero(text.in_role(*NUMBER_ROLES))
        return found[found > 0]
    found = np.unique(np.asarray(numbers, np.int64))
    wrong = found[(found < 1) | (found >= len(text))]
    if len(wrong):
        raise RecordingError(f"no expectation at position {wrong[0]}: allowed are 1 to {len(text) - 1}, which tokens stand before")
    return found


# --- attention --------------------------------------------------------------------------------------------------------


class _Reader:
    """Takes what is kept out of each block of a map (`interp.recording.recorder.MapReader`)."""

    def __init__(self, text: AnnotatedText, step_of: np.ndarray, layers: tuple[int, ...], thresholds: np.ndarray) -> None:
        self._layers, self._thresholds = layers, torch.from_numpy(thresholds)
        self._watching = np.isfinite(thresholds)
        self._step_of = np.where(text.is_query, step_of, -1)
        self._steps = np.unique(step_of[step_of >= 0])
        self._asked = text.in_role("question_number")
        results = text.in_role(*RESULT_ROLES) & (step_of >= 0)
        self._found_in = np.where(results, step_of, np.iinfo(step_of.dtype).max)  # later than any step where it is no result
        self._sums = np.zeros((len(self._steps), len(layers), thresholds.shape[1], len(STEP_QUANTITIES)))
        self._kept: list[tuple[np.ndarray, ...]] = []

    def read(self, block: MapBlock) -> None:
        at, probabilities = self._layers.index(block.layer), block.probabilities[0]
        if self._watching[at, block.heads].any():
            limits = self._thresholds[at, block.heads].to(probabilities.device)
            places = (probabilities >= limits[:, None, None]).nonzero(as_tuple=True)
            head, query, key = (place.cpu().numpy() for place in places)
            self._kept.append(
                (
                    np.full(len(head), block.layer, np.int16),
                    (head + block.heads.start).astype(np.int16),
                    (query + block.queries.start).astype(np.int32),
                    (key + block.keys.start).astype(np.int32),
                    probabilities[places].cpu().numpy(),
                )
            )
        here = self._step_of[block.queries]
        for step in np.unique(here[here >= 0]):
            number = int(np.searchsorted(self._steps, step))
            rows = torch.from_numpy(np.flatnonzero(here == step)).to(probabilities.device)
            sets = torch.from_numpy(self._sets(step)[block.keys]).to(probabilities)
            self._sums[number, at, block.heads] += (probabilities.index_select(1, rows).sum(1) @ sets).cpu().numpy()

    def _sets(self, step: int) -> np.ndarray:
        """Keys that count for a step, [key, quantity]."""
        return np.stack([self._asked, self._found_in < step], 1)

    def end_layer(self, layer: int, n_keys: Tensor) -> None:
        """Nothing is kept by layer."""

    def edges(self) -> pd.DataFrame:
        """The kept entries, each once, since each place of a map is in one block."""
        names = ("layer", "head", "query", "key", "probability")
        empty = tuple(np.zeros(0, kind) for kind in (np.int16, np.int16, np.int32, np.int32, np.float32))
        columns = [np.concatenate(parts) for parts in zip(*(self._kept or [empty]), strict=True)]
        order = np.lexsort(columns[3::-1])
        return pd.DataFrame({name: column[order] for name, column in zip(names, columns, strict=True)})

    def steps(self) -> pd.DataFrame:
        """Means over each step's queries."""
        n_queries = (self._step_of[:, None] == self._steps).sum(0)
        seen = np.stack([np.full(len(self._steps), self._asked.any()), self._found_in.min() < self._steps], 1)
        n_defined = np.where(seen, n_queries[:, None], 0)  # [step, quantity]
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.where(n_defined > 0, 1.0, np.nan)[:, None, None] * self._sums / n_queries[:, None, None, None]
        axes = [self._steps.astype(np.int16), np.asarray(self._layers, np.int16), np.arange(values.shape[2], dtype=np.int16)]
        names = ["step", "layer", "head", "quantity"]
        frame = pd.MultiIndex.from_product([*axes, STEP_QUANTITIES], names=names).to_frame(index=False)
        counts = np.broadcast_to(n_defined[:, None, None], values.shape).astype(np.int32)
        return frame.assign(value=values.ravel(), n_queries=counts.ravel())


# --- expectation ------------------------------------------------------------------------------------------------------


def _logits(root: PreTrainedModel, inputs: Mapping[str, Tensor], rows: np.ndarray) -> Tensor:
    """Logits after the tokens at `rows`, [row, vocabulary]."""
    index = torch.from_numpy(rows)  # on the CPU, from where it fits a model on any device, or on several
    if "logits_to_keep" not in inspect.signature(type(root).forward).parameters:
        return root(**inputs, use_cache=False).logits[0, index]
    logits = root(**inputs, use_cache=False, logits_to_keep=index).logits[0]
    if len(logits) != len(rows):
        raise RecordingError(
            f"{type(root).__name__} was asked for the logits of {len(rows)} tokens (logits_to_keep) and gave {len(logits)}"
        )
    return logits


def _next_table(logits: Tensor, positions: np.ndarray, ids: np.ndarray, tokenizer: Any) -> pd.DataFrame:
    """The most likely tokens at each position and the one that stands there."""
    rows: list[tuple[int, int, int, float, bool]] = []
    at_once = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    for first in range(0, len(positions), at_once):
        part = logits[first : first + at_once].float()
        log_probabilities = part.log_softmax(-1)
        if bool(log_probabilities.isnan().any()):
            raise RecordingError("logits are NaN or infinite; is the checkpoint damaged, or float16 too narrow?")
        for logit, chances, position in zip(part.cpu().numpy(), log_probabilities.cpu().numpy(), positions[first:], strict=False):
            read = int(ids[position])
            n_first = min(ALTERNATIVES, len(logit))
            # all that tie with the last of the list, so that of equal ones the smaller ids are taken
            enough = np.flatnonzero(logit >= np.partition(logit, -n_first)[-n_first])
            likely = enough[np.argsort(-logit[enough], kind="stable")][:n_first].tolist()
            rank = 1 + int((logit > logit[read]).sum() + (logit[:read] == logit[read]).sum())
            ranked = dict(enumerate(likely, 1)) | {rank: read}
            rows += [(int(position), at, token, float(np.exp(np.float64(chances[token]))), token == read) for at, token in ranked.items()]
    frame = pd.DataFrame(rows, columns=["position", "rank", "token_id", "probability", "is_read"])
    kinds = {"position": np.int32, "rank": np.int32, "token_id": np.int32, "probability": np.float64, "is_read": bool}
    frame = frame.astype(kinds)
    names = {token: token_text(tokenizer, token) for token in frame["token_id"].unique().tolist()}
    frame.insert(3, "token", pd.Series([names[token] for token in frame["token_id"].tolist()], dtype=str))
    return frame


def token_text(tokenizer: Any, token: int) -> str:
    r"""One token as text; bytes that are no whole character are written out: "\xd9".

    Args:
        tokenizer: of transformers; those that keep bytes as characters (byte-level BPE) or as "<0xD9>" are known.
        token: its id.
    """
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if "\ufffd" not in text:
        return text
    raw = str(tokenizer.convert_ids_to_tokens(token))
    of_byte = {character: byte for byte, character in bytes_to_unicode().items()}
    if raw and all(character in of_byte for character in raw):
        return bytes(of_byte[character] for character in raw).decode("utf-8", "backslashreplace")
    return raw if re.fullmatch(r"<0x[0-9A-F]{2}>", raw) else text


# --- tokens -----------------------------------------------------------------------------------------------------------


def token_rows(text: AnnotatedText) -> pd.DataFrame:
    """The text as rows of `interp.tables.example.TOKENS`, without `model` and `step`.

    `shown` of all tokens joined is the whole text: what no token covers is shown with the next one, and what follows the last with it.
    """
    ends = np.maximum.accumulate(text.offsets[:, 1])
    ends[-1:] = len(text.text)
    starts = np.concatenate([[0], ends[:-1]])
    return pd.DataFrame(
        {
            "position": np.arange(len(text), dtype=np.int32),
            "token_id": text.ids.astype(np.int32),
            "token": pd.Series(text.pieces, dtype=str),
            "shown": pd.Series([text.text[a:b] for a, b in zip(starts, ends, strict=True)], dtype=str),
            "region": np.asarray(TOKEN_REGIONS)[text.regions],
            "role": np.asarray(ROLES)[text.roles],
            "number": _numbers(text),
            "is_query": text.is_query,
        }
    )


def _numbers(text: AnnotatedText) -> np.ndarray:
    """Which number of the text each token belongs to, [token] int16, -1 for none; of several in one token, the last."""
    is_number = text.in_role(*NUMBER_ROLES)
    begins = np.full(len(text), -1, np.int64)
    for region in ("question", "response"):
        inside = text.in_region(region) & (text.offsets[:, 1] > text.offsets[:, 0])
        if not inside.any():
            continue
        start, stop = text.offsets[inside, 0].min(), text.offsets[inside, 1].max()
        found = np.asarray([match.start() + start for match in NUMBER.finditer(text.text[start:stop])], np.int64)
        chosen = np.flatnonzero(is_number & inside)
        # the last that begins before the token ends: a token of a number's role covers a part of one
        begins[chosen] = found[np.searchsorted(found, text.offsets[chosen, 1]) - 1]
    numbers = np.full(len(text), -1, np.int16)
    numbers[is_number] = np.unique(begins[is_number], return_inverse=True)[1]
    return numbers
