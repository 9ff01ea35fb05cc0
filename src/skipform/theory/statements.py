"""The statements of the paper, and those that this companion adds, each with the function that checks it.

The items `Depth`, `Keras` and `Rounding` are ours. An erratum is a place where the paper's text had to be read with
care; its number is that of the list in paper/main.typ.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skipform.theory import block_checks, pooling_checks, skip_checks
from skipform.theory.check import Check

ONE_ARGUMENT_TOO_MANY = "3: max(x, y) = relu(x - y) + y"
NEVER_PADDED = "4: never padded with -inf"
BOUNDED_ERROR = "4: error bound in float64"
NOT_THE_LEAST_DEPTH = "5: ceil(log2 n) is not the least depth"
PRINTS_DIVISION = "1: the paper prints division"
POSITIVE_INPUTS = "2: positive inputs only"
INCLUSION_ONLY = "6: the proof shows inclusion only"
ONE_LAYER_NOT_TWO = "7: one layer, where the paper has two"


@dataclass(frozen=True)
class Statement:
    """One row of the table: the paper's item, what is stated, the function that checks it, the erratum, if any."""

    item: str
    text: str
    check: Callable[[Check], None]
    erratum: str | None = None

    def verify(self, generator: np.random.Generator, *, repetitions: int = 20, thorough: bool = False) -> Check:
        """The finished check of this statement; `Check.holds` says whether it stands.

        generator: draws the random instances, `repetitions` of them where there is a choice. thorough: also the proofs
        and instances that take longer.
        """
        check = Check(generator, repetitions, thorough)
        self.check(check)
        return check


STATEMENTS = [
    Statement("Theorem 1", "average of n = affine, depth 0", pooling_checks.average_is_affine),
    Statement(
        "Theorem 1",
        "max of n = ReLU tree of depth ceil(log2 n)",
        pooling_checks.maximum_is_a_tree,
        ONE_ARGUMENT_TOO_MANY,
    ),
    Statement("Theorem 1", "max of n in any depth m >= log2 n", pooling_checks.maximum_has_every_larger_depth),
    Statement("Theorem 1", "max pooling 1-D to 3-D, global", pooling_checks.max_pooling_is_a_forest, NEVER_PADDED),
    Statement("Theorem 1", "average pooling 1-D to 3-D, global", pooling_checks.average_pooling_is_affine),
    Statement("Depth", "max of 5 in 2 layers", pooling_checks.maximum_of_five_has_depth_two, NOT_THE_LEAST_DEPTH),
    Statement(
        "Depth",
        "max of 5, 12, 30, 75 in 2, 3, 4, 5 layers",
        pooling_checks.maximum_of_twelve_has_depth_three,
        NOT_THE_LEAST_DEPTH,
    ),
    Statement(
        "Depth",
        "max of 6, 18, 54, 162 in 2, 3, 4, 5 layers",
        pooling_checks.maximum_of_six_has_depth_two,
        NOT_THE_LEAST_DEPTH,
    ),
    Statement("Depth", "max of 8 in 2 layers", pooling_checks.maximum_of_eight_has_depth_two, NOT_THE_LEAST_DEPTH),
    Statement(
        "Depth",
        "max of n = 4..9 in ceil(log3(n - 2)) + 1 layers",
        pooling_checks.maximum_is_shallower_than_the_tree,
        NOT_THE_LEAST_DEPTH,
    ),
    Statement("Theorem 2", "addition skip = concatenation, affine", skip_checks.addition_is_affine),
    Statement(
        "Theorem 2", "subtraction skip = concatenation, affine", skip_checks.subtraction_is_affine, PRINTS_DIVISION
    ),
    Statement("Theorem 2", "average skip = concatenation, affine", skip_checks.average_is_affine),
    Statement("Theorem 2", "division is not affine (witness)", skip_checks.division_is_not_affine, PRINTS_DIVISION),
    Statement("Theorem 2", "maximum skip = relu(x - y) + y", skip_checks.maximum_is_a_relu_tree, ONE_LAYER_NOT_TWO),
    Statement("Theorem 2", "minimum skip = y - relu(y - x)", skip_checks.minimum_is_a_relu_tree),
    Statement("Theorem 2", "product by log and exp, x > 0", skip_checks.product_by_logarithms, POSITIVE_INPUTS),
    Statement("Theorem 2", "product by squares, all x", skip_checks.product_by_squares, POSITIVE_INPUTS),
    Statement("Keras", "dot by log and exp, x > 0", skip_checks.dot_by_logarithms),
    Statement("Keras", "dot by squares, all x", skip_checks.dot_by_squares),
    Statement("Keras", "concatenate along any axis", skip_checks.concatenation_reorders),
    Statement("Proposition 1", "w . (a; b) = u . a + v . b, both ways", skip_checks.splitting_and_joining),
    Statement("Theorem 3", "addition to concatenation, many layers", block_checks.addition_becomes_concatenation),
    Statement("Theorem 3", "concatenation to addition, many layers", block_checks.concatenation_becomes_addition),
    Statement("Theorem 3", "both conversions, two activations f and g", block_checks.activations_may_differ),
    Statement(
        "Theorem 4",
        "L-activation block in L single ones, concatenation",
        block_checks.single_activations_suffice_for_concatenation,
    ),
    Statement(
        "Theorem 4",
        "L-activation block in L single ones, addition",
        block_checks.single_activations_suffice_for_addition,
    ),
    Statement("Theorem 4", "the printed weights for L = 2, any a", block_checks.printed_weights_hold_for_every_a),
    Statement(
        "Theorem 4",
        "the inclusion is strict (staircase)",
        block_checks.inclusion_is_strict_by_slopes,
        INCLUSION_ONLY,
    ),
    Statement(
        "Theorem 4",
        "the inclusion is strict (dimension, equal widths)",
        block_checks.inclusion_is_strict_by_dimension,
        INCLUSION_ONLY,
    ),
    Statement(
        "Section 5",
        "average pooling without padding: rank = outputs",
        pooling_checks.average_pooling_has_as_many_ranks_as_outputs,
    ),
    Statement(
        "Section 5",
        "pooling, skips in a net: only maxima add depth",
        pooling_checks.poolings_and_skips_within_a_net,
    ),
    Statement("Definition 1", "every block net has a canonical form", block_checks.blocks_have_a_canonical_form),
    Statement(
        "Rounding",
        "fl(relu(x - y) + y) within its bound (relative)",
        pooling_checks.rounding_stays_within_the_bound,
        BOUNDED_ERROR,
    ),
]
