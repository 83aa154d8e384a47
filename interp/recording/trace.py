# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Inspect one text with one forward pass: measures of every head, strong attention entries, and next-token predictions.

No complete attention map is held. The measures are those of `interp.recording.recorder`. The maps arrive block by block; only entries at or
above a threshold are kept (at most 1 / threshold per query, because each row sums to 1), and for each step of the response the attention to
the question's numbers and to the results of earlier steps. The model's own forward computes logits at the requested positions only
(`logits_to_keep`), so its scales, caps and biases apply. A model without that argument computes all logits.
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
from interp.recording.recorder import MapBlock, record, unknown_head
from interp.tables.errors import RecordingError
from interp.tables.example import ALTERNATIVES, FAINT, STEP_QUANTITIES, STRONG
from interp.tables.schema import ROLES, TOKEN_REGIONS
from interp.tokens import NUMBER, NUMBER_ROLES, AnnotatedText, Tokens

_RESULT_ROLES = ("intermediate_result", "final_answer")
"""Roles of the tokens that a later step may use."""

LOGITS_AT_ONCE = 1 << 22
"""Number of logits converted to float32 at a time: 16 MB."""


@dataclass(frozen=True)
class Trace:
    """Result of one pass over one text. Frames have the columns of their schema without `model`, and are sorted by its key.

    Attributes:
        layers: indices of the layers with attention.
        measures: names of the measures.
        values: each head's measures as in the `examples` table, [layer, head, measure, region] float64, NaN where undefined.
        counts: number of queries that each value is based on, same shape.
        edges: rows of `interp.tables.example.EDGES`.
        steps: rows of `interp.tables.example.STEPS`.
        next: rows of `interp.tables.example.NEXT`.
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
    """Run a model once over one text, and return what the tables of the text need.

    For a step s, let Q_s be its tokens that count as queries, and R_s the tokens of result roles with 0 <= step < s:

        question_numbers  mean over i in Q_s of sum_j p_ij over the question's number tokens j
        earlier_results   mean over i in Q_s of sum_j p_ij over j in R_s

    Both are NaN with `n_queries` 0 if there is no such j, or if Q_s is empty. The prediction at position p is the softmax, in float32, of
    the model's logits at p - 1. Tokens are ranked by descending logit, and by ascending id for equal logits, as in greedy decoding.

    Args:
        model: a causal language model of transformers in evaluation mode, on any device; it may have PEFT adapters.
        tokens: one text, from `annotate`.
        measures: as in `record`.
        step_of: step of the response that each token belongs to, [token] int; -1 outside the steps.
        watched: (layer, head) pairs whose entries of at least `faint` are kept.
        numbers: positions to predict, 1 or more; None for all number tokens except one at position 0.
        faint: smallest probability that is kept of a watched head, above 0.
        strong: smallest probability that is kept of any other head, above 0; None keeps nothing of them.
        seed: seed of the shuffled token sets.

    Raises:
        RecordingError: several texts, steps of the wrong length, a position without an earlier token, a threshold that is not above 0, an
            unknown watched head, a model without an output head, tokens without a tokenizer although predictions are requested, or logits
            that are NaN or +inf; and whatever `record` raises it for.
        InputError: a measure is unknown.
        NonFiniteError: the attention is NaN or infinite.
    """
    root = _causal_model(model)
    if len(tokens) != 1:
        raise RecordingError(f"tokens hold {len(tokens)} texts; only one text can be traced at a time, such as tokens.select([0])")
    tokens = tokens.select([0], "right")  # generated text may have kept the padding of its prompt
    text = tokens.texts[0]
    step_of = _checked_steps(step_of, len(text))
    positions = _checked_positions(numbers, text)
    if len(positions) and tokens.tokenizer is None:
        raise RecordingError("the tokens have no tokenizer, so predictions cannot be shown as text; pass numbers=() to make none")
    layers, n_heads = attention_layers(root.config), int(root.config.get_text_config(decoder=True).num_attention_heads)
    thresholds = _checked_thresholds(layers, n_heads, watched, faint, strong)
    reader = _Reader(text, step_of, layers, thresholds)
    device = next(root.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in tokens.inputs.items()}
    with torch.inference_mode(), record(model, tokens, measures, backend="blocked", seed=seed, reader=reader) as heads:
        logits = _logits(root, inputs, positions - 1)
    values, counts = heads.totals.values()
    expected = _next_table(logits, positions, text.ids, tokens.tokenizer)
    return Trace(layers, tuple(heads.measures), values[0], counts[0], reader.edges(), reader.steps(), expected)


# --- checks -----------------------------------------------------------------------------------------------------------


def _causal_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model with its output head; it includes PEFT's layers."""
    root = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if root is None or root.get_output_embeddings() is None:
        name = type(model if root is None else root).__name__
        raise RecordingError(f"{name} has no output head; pass a causal language model of transformers")
    return root


def _checked_steps(step_of: np.ndarray, n_tokens: int) -> np.ndarray:
    steps = np.asarray(step_of)
    if steps.shape != (n_tokens,) or not np.issubdtype(steps.dtype, np.integer):
        raise RecordingError(
            f"step_of is {steps.dtype} {list(steps.shape)}; it must hold one integer for each of the text's {n_tokens} tokens"
        )
    return np.maximum(steps.astype(np.int64), -1)


def _checked_thresholds(
    layers: Sequence[int], n_heads: int, watched: Sequence[tuple[int, int]], faint: float, strong: float | None
) -> np.ndarray:
    """Return the smallest probability that is kept of each head, [layer, head]; infinite to keep nothing."""
    for name, threshold in (("faint", faint), ("strong", strong)):
        if threshold is not None and not threshold > 0:
            raise RecordingError(f"{name} is {threshold}; it must be above 0: a table of all entries grows with the square of the text")
    unknown = [(layer, head) for layer, head in watched if layer not in layers or not 0 <= head < n_heads]
    if unknown:
        raise RecordingError(unknown_head(*unknown[0], layers, n_heads))
    thresholds = np.full((len(layers), n_heads), np.inf if strong is None else strong, np.float32)
    for layer, head in watched:
        thresholds[layers.index(layer), head] = faint
    return thresholds


def _checked_positions(numbers: Sequence[int] | None, text: AnnotatedText) -> np.ndarray:
    if numbers is None:
        found = np.flatnonzero(text.in_role(*NUMBER_ROLES))
        return found[found > 0]
    found = np.unique(np.asarray(numbers, np.int64))
    wrong = found[(found < 1) | (found >= len(text))]
    if len(wrong):
        raise RecordingError(f"position {wrong[0]} cannot be predicted; allowed are 1 to {len(text) - 1}, which have an earlier token")
    return found


# --- attention --------------------------------------------------------------------------------------------------------


class _Reader:
    """Extracts what is kept of each block of a map (an `interp.recording.recorder.MapReader`)."""

    def __init__(self, text: AnnotatedText, step_of: np.ndarray, layers: tuple[int, ...], thresholds: np.ndarray) -> None:
        self._layers, self._thresholds = layers, torch.from_numpy(thresholds)
        self._watching = np.isfinite(thresholds)
        self._step_of = np.where(text.is_query, step_of, -1)
        self._steps = np.unique(step_of[step_of >= 0])
        self._asked = text.in_role("question_number")
        results = text.in_role(*_RESULT_ROLES) & (step_of >= 0)
        self._found_in = np.where(results, step_of, np.iinfo(step_of.dtype).max)  # tokens that are not results come after every step
        self._sums = np.zeros((len(self._steps), len(layers), thresholds.shape[1], len(STEP_QUANTITIES)))
        self._kept: list[tuple[np.ndarray, ...]] = []

    def read(self, block: MapBlock) -> None:
        """Keep entries above the threshold, and sum the attention of each step."""
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
        """Return the keys that count for a step, [key, quantity]."""
        return np.stack([self._asked, self._found_in < step], 1)

    def end_layer(self, layer: int, n_keys: Tensor) -> None:
        """Do nothing: no quantity needs the end of a layer."""

    def edges(self) -> pd.DataFrame:
        """Return the kept entries; each occurs once, because blocks do not overlap."""
        names = ("layer", "head", "query", "key", "probability")
        empty = tuple(np.zeros(0, kind) for kind in (np.int16, np.int16, np.int32, np.int32, np.float32))
        columns = [np.concatenate(parts) for parts in zip(*(self._kept or [empty]), strict=True)]
        order = np.lexsort(columns[3::-1])
        return pd.DataFrame({name: column[order] for name, column in zip(names, columns, strict=True)})

    def steps(self) -> pd.DataFrame:
        """Return the means over the queries of each step."""
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


# --- predictions ------------------------------------------------------------------------------------------------------


def _logits(root: PreTrainedModel, inputs: Mapping[str, Tensor], rows: np.ndarray) -> Tensor:
    """Return the logits after the tokens at `rows`, [row, vocabulary]."""
    index = torch.from_numpy(rows)  # on the CPU, which works for a model on any device, or on several
    if "logits_to_keep" not in inspect.signature(type(root).forward).parameters:
        return root(**inputs, use_cache=False).logits[0, index]
    logits = root(**inputs, use_cache=False, logits_to_keep=index).logits[0]
    if len(logits) != len(rows):
        raise RecordingError(f"{type(root).__name__} returned the logits of {len(logits)} tokens; logits_to_keep requested {len(rows)}")
    return logits


def _next_table(logits: Tensor, positions: np.ndarray, ids: np.ndarray, tokenizer: Any) -> pd.DataFrame:
    """Return the most likely tokens at each position and the actual one."""
    rows: list[tuple[int, int, int, float, bool]] = []
    at_once = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    for first in range(0, len(positions), at_once):
        part = logits[first : first + at_once].float()
        log_probabilities = part.log_softmax(-1)
        if bool(log_probabilities.isnan().any()):
            raise RecordingError("logits are NaN or infinite; is the checkpoint damaged, or the range of float16 exceeded?")
        for logit, chances, position in zip(part.cpu().numpy(), log_probabilities.cpu().numpy(), positions[first:], strict=False):
            read = int(ids[position])
            n_first = min(ALTERNATIVES, len(logit))
            # include all ties with the last one, so that the smallest ids are taken
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
    r"""Return a token as text, with bytes that are not a complete character written out, as in "\xd9".

    Args:
        tokenizer: a tokenizer of transformers; supported are those that keep bytes as characters (byte-level BPE) or as "<0xD9>".
        token: id of the token.
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
    """Return the text as rows of `interp.tables.example.TOKENS`, without `model` and `step`.

    The `shown` values of all tokens joined give the complete text. Characters that no token covers belong to the next token; those after
    the last token belong to the last.
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
    """Return which number of the text each token belongs to, [token] int16: -1 for none, and the last one if it covers several."""
    is_number = text.in_role(*NUMBER_ROLES)
    begins = np.full(len(text), -1, np.int64)
    for region in ("question", "response"):
        inside = text.in_region(region) & (text.offsets[:, 1] > text.offsets[:, 0])
        if not inside.any():
            continue
        start, stop = text.offsets[inside, 0].min(), text.offsets[inside, 1].max()
        found = np.asarray([match.start() + start for match in NUMBER.finditer(text.text[start:stop])], np.int64)
        chosen = np.flatnonzero(is_number & inside)
        # the last number that begins before the token ends: every token of a number's role covers part of a number
        begins[chosen] = found[np.searchsorted(found, text.offsets[chosen, 1]) - 1]
    numbers = np.full(len(text), -1, np.int16)
    numbers[is_number] = np.unique(begins[is_number], return_inverse=True)[1]
    return numbers
