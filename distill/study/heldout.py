"""Likelihood of held-out answers under a student, and its divergence from the teacher that wrote them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from distill.evaluation.likelihood import score_texts
from distill.objectives.aligned import aligned_texts
from distill.problems.sets import problems_digest
from distill.study.conditions import FINETUNE, condition_of
from distill.study.folder import StudyFolder
from distill.teachers.teacher import same_tokenizer
from interp.tables.files import write_json

if TYPE_CHECKING:
    from distill.sources.texts import Text
    from interp.checkpoints.loading import Checkpoint
    from interp.checkpoints.unembedding import OutputHead


_FILE = "heldout.json"


def score_heldout(study: StudyFolder, condition: str, folder: Path, about: Mapping[str, Any], opened: Callable[[], Checkpoint]) -> None:
    """Write a student's scores on held-out answers into its evaluation's folder; scores with the same settings are kept.

    Args:
        study: the study.
        condition: the student's condition.
        folder: folder of the evaluation.
        about: what identifies the student.
        opened: returns the student's model.
    """
    own = study.config
    settings = {
        "about": dict(about),
        "heldout_sha256": problems_digest(study.heldout),
        "records": [study.group(name, study.teacher_of(name)).key for name in answer_sets(study, condition).values()],
        "context": study.context.content,
        "max_tokens": own.objective.max_tokens,
        "interval": [own.evaluation.level, own.evaluation.resamples, own.evaluation.seed],
    }
    file = folder / _FILE
    if (_read(file) or {}).get("settings") == settings:
        return
    rows = heldout_scores(study, opened(), condition).to_dict("records")
    write_json(file, {"settings": settings, "rows": rows})


def read_heldout(folder: Path) -> pd.DataFrame:
    """Return the scores of `score_heldout`, indexed by set of answers; empty if there are none."""
    scores = _read(folder / _FILE)
    return pd.DataFrame(scores["rows"]).set_index("answers").astype(float) if scores else pd.DataFrame()


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of the file; None if it does not exist or is damaged, so that it is made again."""
    try:
        scores = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return scores if isinstance(scores, dict) and {"settings", "rows"} <= set(scores) else None


def answer_sets(study: StudyFolder, condition: str) -> dict[str, str]:
    """Return the sets of held-out answers by name, and the condition whose teacher wrote each.

    `reference` holds the reference solutions. `baseline` holds the teacher's answers under the baseline's strategy, the same for all
    conditions. `own` holds the answers under the condition's own strategy. The published objective has no answers of a teacher.
    """
    sets = {"reference": FINETUNE.name}
    if not study.config.objective.alignment.scores_prompt:
        answered = {"baseline": study.config.baseline, "own": condition}
        sets |= {name: whose for name, whose in answered.items() if condition_of(whose).has_teacher}
    return sets


def heldout_scores(study: StudyFolder, checkpoint: Checkpoint, condition: str) -> pd.DataFrame:
    """Return the likelihood of held-out answers and the divergence from the teacher that wrote them, one row per set of answers.

    Columns: `answers` (see `answer_sets`), `texts`, `tokens`, `nll` with its bootstrap interval over texts (nats per token),
    `perplexity`, and `kl`: KL(teacher || student) in nats per token at T = 1, NaN without signals of the teacher.
    """
    tokenizer = checkpoint.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = []
    for name, whose in answer_sets(study, condition).items():
        texts, head = _heldout_texts(study, whose, tokenizer)
        if not texts:
            continue
        scores = score_texts(checkpoint.model, texts, pad or 0, batch_size=study.config.evaluation.batch_size, teacher_head=head)
        nll, kl = (scores[key].sum() / scores["tokens"].sum() for key in ("nll", "kl"))
        low, high = _ratio_interval(study, scores)
        rows.append(
            {
                "answers": name,
                "texts": len(scores),
                "tokens": int(scores["tokens"].sum()),
                "nll": nll,
                "nll_low": low,
                "nll_high": high,
                "perplexity": math.exp(nll),
                "kl": kl if scores["kl"].notna().all() else math.nan,
            }
        )
    return pd.DataFrame(rows)


def _heldout_texts(study: StudyFolder, whose: str, tokenizer: Any) -> tuple[Sequence[Text], OutputHead | None]:
    """Return the held-out answers of a condition's teacher as texts for the student, and the teacher's output head if it is needed."""
    teacher, signal = study.teacher_of(whose), study.teacher_config(whose).signal
    group = study.group(whose, teacher)
    if condition_of(whose).from_references:
        group.collect(study.heldout, lambda problems: teacher.answer(problems, study.strategy(whose)), len(study.heldout))
    records = [r for r in group.read(study.heldout) if r.text.strip()]
    if not records:
        return (), None
    same = teacher.tokenizer is not None and same_tokenizer(teacher.tokenizer, tokenizer) is None
    signals = same and signal != "text"
    if not signals:
        records = [replace(r, signals={}) for r in records]
    texts = aligned_texts(
        records, tokenizer, study.context, study.chat(tokenizer), max_tokens=study.config.objective.max_tokens, same_tokenizer=same
    ).texts
    return texts, study.store.read_head(teacher.identity) if signals and signal == "hidden" else None


def _ratio_interval(study: StudyFolder, scores: pd.DataFrame) -> tuple[float, float]:
    """Return the bootstrap interval over texts of the nats per token, which is a ratio of two sums."""
    own = study.config.evaluation
    random = np.random.default_rng(own.seed)
    picks = random.integers(0, len(scores), (own.resamples, len(scores)))
    means = scores["nll"].to_numpy()[picks].sum(1) / scores["tokens"].to_numpy()[picks].sum(1)
    low, high = np.quantile(means, [(1 - own.level) / 2, (1 + own.level) / 2])
    return float(low), float(high)
