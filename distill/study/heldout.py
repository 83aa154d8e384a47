"""How likely held-out answers are to a student, and how far it is from the teacher that wrote them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from distill.evaluation.likelihood import score_texts
from distill.objectives.aligned import aligned_texts
from distill.problems.sets import problems_digest
from distill.strategies import RESERVED, Strategy
from distill.study.folder import StudyFolder
from distill.teachers.teacher import same_tokenizer
from interp.tables.files import write_text

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint


FILE = "heldout.json"


def score_heldout(study: StudyFolder, condition: str, folder: Path, about: Mapping[str, Any], opened: Callable[[], Checkpoint]) -> None:
    """Writes a student's scores into the folder of its evaluation; what is there of the same settings is kept.

    Args:
        study: the student's study.
        condition: the student's.
        folder: of its evaluation.
        about: who the student is.
        opened: opens it.
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
    file = folder / FILE
    if (_read(file) or {}).get("settings") == settings:
        return
    rows = heldout_scores(study, opened(), condition).to_dict("records")
    write_text(file, json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


def read_heldout(folder: Path) -> pd.DataFrame:
    """The scores of `score_heldout`, by set of answers; empty where there are none."""
    scores = _read(folder / FILE)
    return pd.DataFrame(scores["rows"]).set_index("answers") if scores else pd.DataFrame()


def _read(file: Path) -> dict[str, Any] | None:
    """None where it is not there or damaged: it is then made again."""
    try:
        scores = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return scores if isinstance(scores, dict) and {"settings", "rows"} <= set(scores) else None


def answer_sets(study: StudyFolder, condition: str) -> dict[str, str]:
    """Names of the sets of held-out answers, and the condition whose teacher wrote them.

    `reference` are the problems' solutions; `baseline` the teacher's answers under the baseline's strategy, one yardstick for all
    conditions; `own` those under the condition's own strategy. The published objective's teacher never answers.
    """
    sets = {"reference": "finetune"}
    if study.config.objective.name == "aligned":
        sets |= {"baseline": study.config.baseline} if study.config.baseline not in RESERVED else {}
        sets |= {"own": condition} if condition not in RESERVED else {}
    return sets


def heldout_scores(study: StudyFolder, checkpoint: Checkpoint, condition: str) -> pd.DataFrame:
    """Likelihood of held-out answers, and the divergence to the teacher that wrote them, a row a set of answers.

    Columns: answers (see `answer_sets`), texts, tokens, nll with its bootstrap interval over texts (nats a token), perplexity, and kl,
    KL(teacher || student) in nats a token at T = 1 where the teacher gave signals.
    """
    tokenizer, evaluation = checkpoint.tokenizer, study.config.evaluation
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    lines = []
    for name, whose in answer_sets(study, condition).items():
        teacher = study.teacher_of(whose)
        group = study.group(whose, teacher)
        if whose == "finetune":
            group.collect(study.heldout, lambda problems, t=teacher: t.answer(problems, Strategy("finetune")), len(study.heldout))
        records = [r for r in group.read(study.heldout) if r.text.strip()]
        same = teacher.tokenizer is not None and same_tokenizer(teacher.tokenizer, tokenizer) is None
        signals = same and study.teacher_config(whose).signal != "text"
        if not records:
            continue
        if not signals:
            records = [replace(r, signals={}) for r in records]
        texts = aligned_texts(
            records, tokenizer, study.context, study.chat(tokenizer), max_tokens=study.config.objective.max_tokens, same_tokenizer=same
        ).texts
        head = study.store.read_head(teacher.identity) if signals and study.teacher_config(whose).signal == "hidden" else None
        scores = score_texts(checkpoint.model, texts, pad or 0, batch_size=evaluation.batch_size, teacher_head=head)
        nll, kl = (scores[key].sum() / scores["tokens"].sum() for key in ("nll", "kl"))
        low, high = _ratio_interval(study, scores)
        lines.append(
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
    return pd.DataFrame(lines)


def _ratio_interval(study: StudyFolder, scores: pd.DataFrame) -> tuple[float, float]:
    """Bootstrap interval over texts of nats a token, a ratio of two sums."""
    own = study.config.evaluation
    random = np.random.default_rng(own.seed)
    picks = random.integers(0, len(scores), (own.resamples, len(scores)))
    means = scores["nll"].to_numpy()[picks].sum(1) / scores["tokens"].to_numpy()[picks].sum(1)
    low, high = np.quantile(means, [(1 - own.level) / 2, (1 + own.level) / 2])
    return float(low), float(high)
