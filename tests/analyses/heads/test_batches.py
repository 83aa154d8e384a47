"""Batches: how texts are grouped changes no value, and generated answers are the model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.heads.conftest import SEVERAL_BATCHES, close_tables, run_of

Heads = Callable[..., Any]
"""The fixture that runs the command: `(*arguments)` -> code, out, err."""
Tables = Callable[[Path], dict[str, pd.DataFrame]]
Save = Callable[..., Path]


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_batch_size_does_not_change_values(heads: Heads, tmp_path: Path, tables: Tables, good: Path, batch_tokens: int) -> None:
    assert heads("--out", tmp_path / "run", "--batch-tokens", batch_tokens).code == 0
    close_tables(tables(good), tables(tmp_path / "run"))


def test_generated_text_is_the_models_greedy_answer(heads: Heads, tmp_path: Path, checkpoint: Path, tables: Tables) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from distill.problems.sets import load_problems

    ran = heads("--out", tmp_path / "run", "--text", "generated", "--max-new-tokens", "9", *SEVERAL_BATCHES)
    assert ran.code == 0
    run, rows = run_of(tmp_path / "run"), tables(tmp_path / "run")["inputs"]
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    n_truncated = 0
    for problem in load_problems(run["problems"]["source"]):
        message = [{"role": "user", "content": problem.question}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            written = model.generate(**prompt, max_new_tokens=9, do_sample=False)[0]
        mine = rows[rows["example"] == problem.index]
        assert mine["token_id"].tolist() == written.tolist()
        answer = mine.iloc[prompt["input_ids"].shape[1] :]
        special = answer["token_id"].isin(tokenizer.all_special_ids)
        assert (answer["region"] == np.where(special, "template", "response")).all()
        assert "".join(answer["token"]) == tokenizer.decode(answer["token_id"].tolist())
        n_truncated += tokenizer.eos_token_id not in answer["token_id"].tolist()
    assert run["text"] == "generated"
    assert run["generated"] == {"max_new_tokens": 9, "n_truncated": n_truncated, "decoding": "greedy"}
    assert any("were truncated at 9 tokens" in warning for warning in run["warnings"]) == (n_truncated > 0)


def test_use_of_the_chat_template_is_recorded_and_changes_the_text(heads: Heads, tmp_path: Path, tables: Tables, good: Path) -> None:
    assert heads("--out", tmp_path / "plain", "--no-chat", "--measures", "bos_mass").code == 0
    assert (run_of(good)["chat"], run_of(tmp_path / "plain")["chat"]) == (True, False)
    chat, plain = ("".join(tables(folder)["inputs"]["token"]) for folder in (good, tmp_path / "plain"))
    assert "<|im_start|>user" in chat
    assert "<|im_start|>" not in plain
    assert "Question: Ann has 12 pens" in plain


def test_problems_are_plain_text_without_a_chat_template(heads: Heads, tmp_path: Path, save_checkpoint: Save, tables: Tables) -> None:
    model = save_checkpoint(tmp_path / "base", template=None)
    assert heads("--out", tmp_path / "run", "--model", model, "--measures", "bos_mass").code == 0
    assert run_of(tmp_path / "run")["chat"] is False
    assert "Question: Ann has" in "".join(tables(tmp_path / "run")["inputs"]["token"])
