# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The measures of an attention head, one function each, and the dict `MEASURES`.

A measure gives one number per query; the tables hold its mean over the queries of a region for which it is defined (NaN says: not defined).
p_ij is the attention of query i to key j, A_i the keys that i may attend to (causality, sliding window), n_i their number.
Where a model has attention sinks, the sink is one more outcome of the distribution (entropies, n_i), but not a key (masses).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from interp.measures.measure import Measure
from interp.measures.numbers import (
    NUMERIC,
    numeric_enrichment,
    numeric_mass,
    numeric_mass_final,
    numeric_mass_intermediate,
    numeric_mass_operand,
    numeric_mass_question,
    numeric_mass_without_bos,
    numeric_z,
    numeric_z_parts,
    operator_mass,
)
from interp.measures.places import bos_mass, duplicate_token_mass, induction_mass, mean_distance, previous_mass, self_mass
from interp.measures.spread import entropy_nats, entropy_normalized, max_prob, renyi2_nats, sparsity_010, sparsity_010_published
from interp.measures.token_sets import (
    N_SHUFFLES,
    duplicate_tokens,
    first_token,
    induction_targets,
    not_first_token,
    numeric_beyond_first,
    numeric_shuffles,
    of_roles,
    previous_position,
    same_position,
)
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

ENTRY_POINTS = "primed_heads.measures"


MEASURES: dict[str, Measure] = {
    measure.info.name: measure
    for measure in (
        Measure(
            MeasureInfo("entropy_nats", "Attention entropy", "nats", 0, 5, "H_i = -sum_j p_ij ln p_ij"),
            entropy_nats,
            frozenset({"entropy"}),
        ),
        Measure(
            MeasureInfo("entropy_normalized", "Normalised entropy", "1", 0, 1, "H_i / ln n_i, n_i allowed keys"),
            entropy_normalized,
            frozenset({"entropy"}),
        ),
        Measure(
            MeasureInfo("renyi2_nats", "Rényi-2 entropy", "nats", 0, 5, "-ln sum_j p_ij^2"),
            renyi2_nats,
            frozenset({"collision"}),
        ),
        Measure(
            MeasureInfo("max_prob", "Largest probability", "probability", 0, 1, "max_j p_ij"),
            max_prob,
            frozenset({"max_prob"}),
        ),
        Measure(
            MeasureInfo("self_mass", "Attention to the token itself", "probability", 0, 1, "p_ii"),
            self_mass,
            pairs={"self": same_position},
        ),
        Measure(
            MeasureInfo("previous_mass", "Attention to the previous token", "probability", 0, 1, "p_i,i-1"),
            previous_mass,
            pairs={"previous": previous_position},
        ),
        Measure(
            MeasureInfo("bos_mass", "Attention to the first token", "probability", 0, 1, "p_i0"),
            bos_mass,
            sets={"first": first_token},
        ),
        Measure(
            MeasureInfo("mean_distance", "Mean attention distance", "tokens", 0, 150, "sum_j p_ij (i - j)"),
            mean_distance,
            frozenset({"distance"}),
        ),
        Measure(
            MeasureInfo("numeric_mass", "Attention to numbers", "probability", 0, 0.5, "sum of p_ij over number tokens"),
            numeric_mass,
            sets=NUMERIC,
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_question",
                "Attention to the question's numbers",
                "probability",
                0,
                0.5,
                "sum of p_ij over numbers of the question",
            ),
            numeric_mass_question,
            sets={"question_number": of_roles("question_number")},
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_operand",
                "Attention to operands",
                "probability",
                0,
                0.5,
                "sum of p_ij over numbers of the response that are neither result nor answer",
            ),
            numeric_mass_operand,
            sets={"operand": of_roles("operand")},
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_intermediate",
                "Attention to intermediate results",
                "probability",
                0,
                0.5,
                "sum of p_ij over numbers after '=' or a calculator mark",
            ),
            numeric_mass_intermediate,
            sets={"intermediate_result": of_roles("intermediate_result")},
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_final",
                "Attention to the final answer",
                "probability",
                0,
                0.5,
                "sum of p_ij over the number after '####' or 'the answer is'",
            ),
            numeric_mass_final,
            sets={"final_answer": of_roles("final_answer")},
        ),
        Measure(
            MeasureInfo(
                "operator_mass",
                "Attention to operators",
                "probability",
                0,
                0.5,
                "sum of p_ij over + - * / x = between numbers",
            ),
            operator_mass,
            sets={"operator": of_roles("operator")},
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_without_bos",
                "Attention to numbers, first token left out",
                "probability",
                0,
                0.5,
                "sum of p_ij over numbers j > 0 / sum of p_ij over all j > 0",
            ),
            numeric_mass_without_bos,
            sets={"numeric_beyond_first": numeric_beyond_first, "not_first": not_first_token},
        ),
        Measure(
            MeasureInfo(
                "numeric_enrichment",
                "Enrichment of numbers",
                "x uniform",
                0,
                4,
                "numeric mass / share of number tokens among the allowed keys; 1 = uniform attention",
            ),
            numeric_enrichment,
            sets=NUMERIC,
        ),
        Measure(
            MeasureInfo(
                "numeric_z",
                "Numbers against shuffled positions",
                "standard deviations",
                -6,
                6,
                f"(m - mean m_k) / sd m_k over {N_SHUFFLES} position-matched shuffles of the number tokens",
            ),
            numeric_z_parts,
            sets={**NUMERIC, "numeric_shuffles": numeric_shuffles},
            combine=numeric_z,
            parts=1 + N_SHUFFLES,
        ),
        Measure(
            MeasureInfo(
                "duplicate_token_mass",
                "Attention to the same token",
                "probability",
                0,
                1,
                "sum of p_ij over j < i with token_j = token_i",
            ),
            duplicate_token_mass,
            pairs={"duplicate": duplicate_tokens},
        ),
        Measure(
            MeasureInfo(
                "induction_mass",
                "Induction",
                "probability",
                0,
                1,
                "sum of p_ij over j with token_{j-1} = token_i, j - 1 < i",
            ),
            induction_mass,
            pairs={"induction": induction_targets},
        ),
        Measure(
            MeasureInfo("sparsity_010", "Share of keys above 0.1", "share", 0, 0.1, "#{j: p_ij > 0.1} / n_i"),
            sparsity_010,
            thresholds=(0.1,),
        ),
        Measure(
            MeasureInfo(
                "sparsity_010_published",
                "Share of all entries above 0.1",
                "share",
                0,
                0.05,
                "#{j: p_ij > 0.1} / T; its mean over the text is the share of all T x T entries",
            ),
            sparsity_010_published,
            thresholds=(0.1,),
        ),
    )
}


def load_measures(names: Iterable[str] | None = None) -> dict[str, Measure]:
    """Measures by name: our own, and those that installed packages offer under the entry point `primed_heads.measures`.

    Args:
        names: which; None for all.

    Raises:
        InputError: an unknown name (the message lists the known), a name offered twice, or an entry point that is no `Measure`.
    """
    offered = dict(MEASURES)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name in offered:
            raise InputError(f"measure {point.name} is offered twice, the second time by {point.value}")
        measure = point.load()
        if not isinstance(measure, Measure) or measure.info.name != point.name:
            raise InputError(f"entry point {point.name} = {point.value} must name a Measure called {point.name}")
        offered[point.name] = measure
    if names is None:
        return offered
    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in offered]
    if unknown or not wanted:
        raise InputError(f"unknown measures {', '.join(unknown) or '(none)'}; known: {', '.join(offered)}")
    return {name: offered[name] for name in wanted}
